"""What the outputs feel of each structure, against derivatives taken one by one in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation import sensitivity as module
from decayprune.compensation.calibration import Calibration, calibrate
from decayprune.compensation.sensitivity import sensitivity
from decayprune.structures import StructureMap, trace
from living import Living


class Net(nn.Module):
    """A convolution read by a convolution, which is read by a linear layer; a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3)
        self.beside = nn.Conv2d(5, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.nn.functional.gelu(self.first(x))
        return self.head(torch.tanh(self.second(h) + self.beside(h)).mean((2, 3)))


def made(number: int = 6) -> tuple[Net, StructureMap, list[Tensor], Calibration]:
    torch.manual_seed(3)
    net = Net().double()
    data = [torch.randn(number, 2, 7, 7, dtype=torch.float64) for _ in range(2)]
    structures = trace(net, data[0])
    return net, structures, data, calibrate(net, structures, data)


def slow(net: Net, structures: StructureMap, data: list[Tensor], read: Calibration) -> Tensor:
    """The whole derivative of all outputs by each structure's gate, by hand."""
    total = torch.zeros(structures.num_structures, dtype=torch.float64)
    means = {name: part.mean for name, part in read.moments.items()}
    group = {g.layer: g for g in structures.groups}

    def forward(x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        def gated(name: str, maker: str, h: Tensor) -> Tensor:
            centre = means[name].view(-1, *[1] * (h.ndim - 2))
            return centre + gates[maker].view(-1, *[1] * (h.ndim - 2)) * (h - centre)

        h = torch.nn.functional.gelu(net.first(x))
        after = torch.tanh(
            net.second(gated("second", "first", h)) + net.beside(gated("beside", "first", h))
        )
        return net.head(gated("head", joint, after.mean((2, 3))))

    joint = next(name for name in group if name != "first")
    for x in data:
        gates = {
            name: torch.ones(g.stop - g.start, dtype=torch.float64, requires_grad=True)
            for name, g in group.items()
        }
        out = forward(x, gates)
        scale = out.detach().square().mean().sqrt()
        for value in (out / scale).flatten():
            slopes = torch.autograd.grad(value, list(gates.values()), retain_graph=True)
            for g, slope in zip(group.values(), slopes, strict=True):
                total[g.start : g.stop] += slope.square()
    return total


def test_in_expectation_it_is_the_whole_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    net, structures, data, read = made()
    monkeypatch.setattr(module, "DRAWS", 3000)
    found = sensitivity(net, structures, data, read)
    expected = slow(net, structures, data, read) * 3000
    torch.testing.assert_close(found.square(), expected, rtol=0.1, atol=0)


def test_of_one_number_two_directions_say_everything() -> None:
    net, structures, data, _ = made(1)
    net.head = nn.Linear(4, 1).double()
    structures = trace(net, data[0])
    read = calibrate(net, structures, data)
    found = sensitivity(net, structures, data, read)
    expected = slow(net, structures, data, read) * module.DRAWS
    torch.testing.assert_close(found.square(), expected, rtol=1e-5, atol=1e-15)  # gates are float32


def test_nothing_of_the_model_changes_and_the_same_comes_out_again() -> None:
    net, structures, data, read = made()
    net.train()
    net.head.weight.requires_grad_(False)
    before, state = Living(net), torch.get_rng_state()
    first = sensitivity(net, structures, data, read)
    assert torch.equal(torch.get_rng_state(), state)
    before.check()
    torch.testing.assert_close(sensitivity(net, structures, data, read), first, rtol=0, atol=0)


def test_what_varies_and_is_not_listened_to_goes_first() -> None:
    net, structures, data, read = made()
    with torch.no_grad():
        net.first.weight[2] *= 10  # loud
        net.second.weight[:, 2] = net.beside.weight[:, 2]
        net.beside.weight[:, 2] *= -1  # and said twice with opposite signs
    read = calibrate(net, structures, data)
    first = next(g for g in structures.groups if g.layer == "first")
    part = slice(first.start, first.stop)
    assert int(sensitivity(net, structures, data, read)[part].argmin()) == 2
    by_variance = read.importance(structures, dict(net.named_parameters()))
    assert int(by_variance[part].argmax()) == 2


class Deaf(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.round()


class Underivable(Net):
    def forward(self, x: Tensor) -> Tensor:
        return Rounded.apply(super().forward(x))  # type: ignore[no-any-return, no-untyped-call]


class Told(nn.Module):
    """Notes what a layer on a GPU would be run by."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.by_cudnn = nn.Linear(3, 6), layer, set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.by_cudnn.add(torch.backends.cudnn.enabled)
        out = self.layer(self.first(x))
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("layer", [nn.GRU(6, 4), nn.Linear(6, 4)])
def test_recurrent_layers_are_differentiated_without_cudnn(layer: nn.Module) -> None:
    net, data = Told(layer), [torch.randn(5, 2, 3)]
    structures = trace(net, data[0])
    read, before = calibrate(net, structures, data), torch.backends.cudnn.enabled
    net.by_cudnn.clear()
    assert bool((sensitivity(net, structures, data, read)[:6] > 0).all())
    assert net.by_cudnn == {before and isinstance(layer, nn.Linear)}
    assert torch.backends.cudnn.enabled is before


@pytest.mark.parametrize(("kind", "why"), [(Deaf, "nothing of it"), (Underivable, "backward")])
def test_outputs_without_a_derivative_are_refused_with_another_way(
    kind: type[Net], why: str
) -> None:
    _, structures, data, _ = made()
    net = kind().double()
    read = calibrate(net, structures, data)
    with pytest.raises(ValueError, match=f"(?s)failed: .*{why}.*importance='variance'"):
        sensitivity(net, structures, data, read)
