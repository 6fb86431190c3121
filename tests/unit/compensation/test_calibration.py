"""What a model's layers read, and the ranking that follows from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation.calibration import calibrate
from decayprune.structures import trace
from living import Living
from loops import INPUTS, batches, net

DATA = [images for images, _ in batches(3)]


def test_moments_are_those_of_the_inputs() -> None:
    model = net().eval()
    found = calibrate(model, trace(model, INPUTS), DATA)
    read: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    for images in DATA:
        model(images)
    whole = torch.cat(read).double()
    assert found.moments["fc"].count == len(whole)
    torch.testing.assert_close(
        found.moments["fc"].covariance.double(),
        torch.cov(whole.T, correction=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_nothing_of_the_model_changes() -> None:
    model = net()
    before = Living(model)
    structures = trace(model, INPUTS)
    calibrate(model, structures, DATA)
    before.check()


def test_the_ranking_against_a_loop() -> None:
    model = net().eval()
    structures = trace(model, INPUTS)
    parameters = dict(model.named_parameters())
    found = calibrate(model, structures, DATA)
    scores = found.importance(structures, parameters)

    for s in range(structures.num_structures):
        slow = 0.0
        for reader in found.readers:
            for channel in (reader.structure == s).nonzero().flatten().tolist():
                column = reader.layer.weight[:, channel].detach().double()
                variance = found.moments[reader.name].covariance[channel, channel]
                slow += float(variance * column.square().sum())
        assert float(scores[s]) == pytest.approx(slow**0.5, rel=1e-5)


def test_a_channel_that_says_nothing_goes_first() -> None:
    model = net().eval()
    with torch.no_grad():
        model.a[1].weight[3], model.a[1].bias[3] = 0, 5  # a constant with a large norm
    structures = trace(model, INPUTS)
    group = next(g for g in structures.groups if g.layer == "a.0")
    scores = calibrate(model, structures, DATA).importance(
        structures, dict(model.named_parameters())
    )
    assert int(scores[group.start : group.stop].argmin()) == 3


class Heard(nn.Module):
    """A reader that is called, and one whose weight is used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.b(self.a(x).relu()).relu()
        return nn.functional.linear(hidden, self.c.weight, self.c.bias)


def test_a_group_that_nobody_heard_is_ranked_by_norms() -> None:
    model = Heard()
    structures = trace(model, torch.randn(3, 4))
    parameters = dict(model.named_parameters())
    scores = calibrate(model, structures, [torch.randn(9, 4)]).importance(structures, parameters)
    unheard = next(g for g in structures.groups if g.layer == "b")
    for number, s in enumerate(range(unheard.start, unheard.stop)):
        norm = sum(
            part.square().sum()
            for part in (model.b.weight[number], model.b.bias[number], model.c.weight[:, number])
        )
        assert float(scores[s]) == pytest.approx(float(norm.detach().sqrt()), rel=1e-5)


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        return self.b(self.a(states).relu()) * attention_mask[..., None]


def test_padding_does_not_count() -> None:
    torch.manual_seed(0)
    model, states = Text(), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"states": states, "attention_mask": mask}
    found = calibrate(model, trace(model, batch), [batch]).moments["b"]
    hidden = model.a(states[mask.bool()]).relu().detach().double()
    assert found.count == 8
    torch.testing.assert_close(found.mean.double(), hidden.mean(0), rtol=1e-5, atol=1e-6)


def test_words() -> None:
    model = net()
    structures = trace(model, INPUTS)
    with pytest.raises(ValueError, match=r"calibrate has no batch. Pass your training loader"):
        calibrate(model, structures, [])
    with pytest.raises(ValueError, match=r"`a\.0` has read values that are not finite"):
        calibrate(model, structures, [INPUTS * float("nan")])
    with pytest.raises(TypeError, match=r"found str"):
        calibrate(model, structures, ["images"])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            INPUTS[:, :1],
            r"Passed: \(.*, 1, .*\) torch.float32 on cpu. It raised RuntimeError: ",
        ),
        ({"pixels": INPUTS}, r"It raised TypeError: .*unexpected keyword argument 'pixels'. Pass "),
        ((), r"Passed: no tensor"),
    ],
)
def test_a_batch_that_the_model_refuses(batch: Any, words: str) -> None:
    model = net().train()
    with pytest.raises(ValueError, match=words):
        calibrate(model, trace(model, INPUTS), [INPUTS, batch])
    assert model.training
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_no_memory_is_no_fault_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    structures = trace(model, INPUTS)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        calibrate(model, structures, [INPUTS])


def test_a_state_of_other_layers_is_refused() -> None:
    model = net()
    found = calibrate(model, trace(model, INPUTS), DATA)
    state = found.state_dict()
    found.load_state_dict(state)
    with pytest.raises(ValueError, match="calibrated on other layers"):
        found.load_state_dict({"fc": state["fc"]})
