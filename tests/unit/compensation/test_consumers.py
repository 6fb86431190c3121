"""Who reads what, on networks whose answer is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import decayprune as dp
from cases import ScaledConv
from decayprune.compensation.calibration import calibrate
from decayprune.compensation.consumers import Consumer, by_structure, consumers
from decayprune.compensation.sensitivity import sensitivity
from decayprune.structures import trace
from loops import net


def test_every_reader_with_its_channels() -> None:
    model = net()
    found = consumers(model, trace(model, torch.randn(2, 3, 8, 8)))
    assert [reader.name for reader in found] == ["a.0", "b.0", "c", "fc"]
    for reader in found:
        assert reader.layer is model.get_submodule(reader.name)
        assert len(reader.structure) == reader.layer.weight.shape[1]
        assert (reader.structure >= 0).any()
        assert len(reader.outputs) == reader.layer.weight.shape[0]
        assert bool((reader.outputs < 0).all()) == (reader.name == "fc")


def test_sums_over_all_that_read_a_structure() -> None:
    layer, none = nn.Linear(4, 2), torch.full((2,), -1)
    first = Consumer("first", layer, torch.tensor([0, 2, -1, 2]), none)
    second = Consumer("second", layer, torch.tensor([2, 1]), none)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.bfloat16)
    found = by_structure([(first, values), (second, torch.tensor([16.0, 32.0]))], 4)
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 32, 26, 0]


def test_grouped_convolutions_are_left_out_and_transposed_ones_read_along_their_first() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 2),
        nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    found = consumers(model, trace(model, torch.randn(2, 3, 8, 8)))
    assert [reader.name for reader in found] == ["2", "3"]
    assert found[0].weight.shape == (6, 8, 2, 2)
    assert (len(found[0].structure), len(found[0].outputs)) == (8, 6)
    assert [reader.offset for reader in found] == [False, True]


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_who_has_a_computed_weight_is_looked_at_and_takes_nothing_over(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), wrap(nn.Conv2d(8, 6, 3)), nn.Conv2d(6, 4, 1)
    )
    data = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = consumers(model.train(), trace(model, data[0]))
    assert [(reader.name, reader.writable) for reader in found] == [("2", False), ("3", True)]
    assert found[0].weight.shape == (6, 8, 3, 3)
    after = model.state_dict()  # to ask a spectral norm for its weight is to change it
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    first = model[0]
    with torch.no_grad():  # the second half of the channels says little
        first.weight[4:] *= 1e-3
        first.bias.zero_()
    dp.prune_one_shot(
        model, data[0], budget=dp.Budget(macs=0.55), calibrate=data, floor=0.5, ignored_layers=["2"]
    )
    assert torch.equal(first.weight, before["0.weight"][:4])


def test_standardised_weights_are_looked_at() -> None:
    model = nn.Sequential(ScaledConv(3, 8, 1), ScaledConv(8, 6, 1), nn.Conv2d(6, 4, 1))
    found = consumers(model, trace(model, torch.randn(2, 3, 8, 8)))
    assert [(reader.name, reader.writable) for reader in found] == [("1", False), ("2", True)]


class Recurrent(nn.Module):
    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.rnn = nn.GRU(8, 4, batch_first=True, bidirectional=True)
        self.head, self.packed = nn.Linear(8, 2), packed

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.packed:
            x = nn.utils.rnn.pack_sequence(list(x))
        out, _ = self.rnn(x)
        if self.packed:
            out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return self.head(out[:, -1])


@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_layers_are_looked_at_unless_what_they_read_is_packed(packed: bool) -> None:
    torch.manual_seed(0)
    model, data = Recurrent(packed=packed), [torch.randn(4, 5, 3) for _ in range(2)]
    structures = trace(Recurrent(packed=False), data[0])
    found = consumers(model, structures)
    assert [(reader.name, reader.writable) for reader in found] == [("rnn", False), ("head", True)]
    assert found[0].weight.shape == (12, 8)
    names = [reader.name for reader in calibrate(model, structures, data).readers]
    assert names == (["head"] if packed else ["rnn", "head"])
    model.rnn.requires_grad_(False)
    felt = sensitivity(model, structures, data, calibrate(model, structures, data))
    assert bool((felt[found[0].structure] > 0).all()) is not packed


class Mlp(nn.Module):
    """Two layers of some kind, between layers of torch."""

    def __init__(self, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.before, self.up, self.down = nn.Linear(4, 6), kind(6, 10), kind(10, 8)
        self.after = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.before(x))
        return self.after(torch.relu(self.down(torch.relu(self.up(x)))))


def test_gpt2_has_linear_layers_too_whose_weights_are_turned() -> None:
    gpt2 = pytest.importorskip("transformers.pytorch_utils")
    usual, turned = Mlp(nn.Linear), Mlp(lambda inputs, outputs: gpt2.Conv1D(outputs, inputs))
    inside = ("up.weight", "down.weight")
    weights = usual.state_dict()
    turned.load_state_dict({k: v.T if k in inside else v for k, v in weights.items()})
    data = [torch.randn(16, 4) for _ in range(3)]
    read = consumers(turned, trace(turned, data[0]))
    assert [reader.name for reader in read] == ["up", "down", "after"]
    for mlp in (usual, turned):
        dp.prune_one_shot(mlp, data[0], budget=dp.Budget(macs=0.5), calibrate=data)
    assert turned.down.nf == usual.down.out_features < 8
    for name in ("up", "down"):
        ours, theirs = usual.get_submodule(name), turned.get_submodule(name)
        torch.testing.assert_close(ours.weight, theirs.weight.T)
    torch.testing.assert_close(usual(data[0]), turned(data[0]))


def test_a_transposed_convolution_of_single_pixels_is_a_convolution() -> None:
    torch.manual_seed(0)
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    usual, turned = (
        nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.ReLU(),
            kind(10, 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 2, 1),
        )
        for kind in kinds
    )
    weights = usual.state_dict()
    turned.load_state_dict(weights | {"2.weight": weights["2.weight"].transpose(0, 1)})
    data = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    for model in (usual, turned):
        dp.prune_one_shot(model, data[0], budget=dp.Budget(macs=0.5), calibrate=data)
    torch.testing.assert_close(usual[2].weight, turned[2].weight.transpose(0, 1))
    torch.testing.assert_close(usual(data[0]), turned(data[0]))


def test_what_an_upsampling_reads_is_taken_over_whatever_its_stride() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1))
    maker = model[0]
    with torch.no_grad():  # half of the channels are the other half, twice
        maker.weight[4:], maker.bias[4:] = 2 * maker.weight[:4], 2 * maker.bias[:4]
    data = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    whole = model(data[0]).detach()
    dp.prune_one_shot(model, data[0], budget=dp.Budget(macs=0.5), calibrate=data, floor=0.5)
    assert maker.out_channels == 4
    torch.testing.assert_close(model(data[0]), whole, rtol=0.02, atol=0.02)


def rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    return Consumer("layer", layer, torch.zeros(0), torch.zeros(0)).rows(inputs)  # type: ignore[arg-type]


def test_rows_are_one_vector_a_position() -> None:
    x = torch.randn(2, 5, 4)
    assert torch.equal(rows(nn.Linear(4, 1), x), x.reshape(10, 4))
    assert torch.equal(rows(nn.Linear(4, 1), x[0, 0]), x[0, :1])

    image = torch.randn(2, 3, 4, 5)
    read = rows(nn.Conv2d(3, 1, 1), image)
    assert torch.equal(read, torch.stack([image[n, :, i, j] for n in range(2) for i in range(4)
                                          for j in range(5)]))  # fmt: skip
    assert torch.equal(rows(nn.Conv2d(3, 1, 1), image[0]), read[:20])
