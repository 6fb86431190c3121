"""Trials find what cannot be cut, on a twin, and run as little as they can."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from cases import CASES
from decayprune.structures import trace
from decayprune.surgery.compare import remember
from decayprune.surgery.trial import guilty, refuse_uncuttable
from living import Living
from loops import INPUTS, net
from reference import cut as slow


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_trial_leaves_the_model_alone(case: str) -> None:
    model, inputs = CASES[case]()
    structures = trace(model, inputs)
    living = Living(model)
    refuse_uncuttable(model, structures, inputs)
    living.check()


@pytest.mark.parametrize("wrong", ["a.0", "stem.0"])
def test_who_is_guilty_is_found_on_a_twin(wrong: str) -> None:
    model = net()
    structures = trace(model, INPUTS)
    gone = torch.zeros(structures.num_structures, dtype=torch.bool)
    gone[[group.start + 1 for group in structures.groups]] = True
    model = slow.zeroed(model, structures, set(gone.nonzero().flatten().tolist())).eval()
    norm = f"{wrong[:-1]}1.running_var"
    slices = [
        dataclasses.replace(s, structure=s.structure.flip(0)) if s.name == norm else s
        for s in structures.slices
    ]
    structures = dataclasses.replace(structures, slices=tuple(slices))
    inputs = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    before, living = remember(model, inputs), Living(model)
    assert guilty(model, structures, gone, inputs, before, None) == [wrong]
    assert guilty(model, structures, gone, inputs, before, 1e9) == []
    living.check()


class LeNet(nn.Module):
    """As in the tutorial: the flattened width is written into forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 400)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def test_a_width_written_into_forward_is_refused_with_the_reason() -> None:
    model, image = LeNet(), torch.randn(2, 1, 32, 32)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        image,
        budget=dp.Budget(params=0.5),
        schedule=dp.Schedule(stop=4, decay_steps=3),
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    reasons = {refusal.layer: refusal.reason for refusal in pruner.structures.refusals}
    assert "conv2" in reasons
    assert "forward() fails once a channel is removed" in reasons["conv2"]
    assert {g.layer for g in pruner.structures.groups} == {"conv1", "fc1", "fc2"}
    for _ in range(9):
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()
        pruner.step()
    pruner.compact()
    assert model.conv2.out_channels == 16
    assert sum(p.numel() for p in model.parameters()) <= 0.5 * sum(
        v.numel() for v in before.values()
    )
    assert model(image).shape == (2, 10)


class HardCoded(nn.Module):
    """Computes with a width it has written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 10, 1), nn.Conv2d(10, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).reshape(x.shape[0], 10, *x.shape[2:]))


PIXELS: list[int] = []  # whoever ran, the model or its twin


class Counted(nn.Module):
    """A network that counts how often it ran, and on how many pixels."""

    def __init__(self, blocks: int, flat: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.blocks = nn.Sequential(*(HardCoded() for _ in range(blocks)))
        self.free = nn.Sequential(nn.Conv2d(6, 5, 1), nn.PReLU(5), nn.Conv2d(5, 2, 1))
        self.head = nn.Linear(2 * 130 * 130, 3) if flat else nn.AdaptiveAvgPool2d(1)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        PIXELS.append(x.shape[-1])
        x = self.free(self.blocks(self.stem(x)))
        return self.head(x.flatten(1) if self.flat else x)


def test_like_blocks_are_not_all_tried() -> None:
    model, inputs = Counted(32, flat=False), torch.randn(1, 3, 8, 8)
    structures = trace(model, inputs)
    assert len(structures.groups) == 34
    PIXELS.clear()
    found = refuse_uncuttable(model, structures, inputs)
    assert [group.layer for group in found.groups] == ["stem", "free.0"]
    reasons = [refusal for refusal in found.refusals if refusal.layer.endswith(".a")]
    assert len(reasons) == 32
    assert all("forward() fails once a channel is removed" in r.reason for r in reasons)
    assert len(PIXELS) < 30  # of both modes, and of both draws


@pytest.mark.parametrize("flat", [False, True])
def test_trials_are_made_on_fewer_pixels_where_the_model_takes_them(flat: bool) -> None:
    model, inputs = Counted(1, flat), torch.randn(1, 3, 130, 130)
    structures = trace(model, inputs)
    PIXELS.clear()
    found = refuse_uncuttable(model, structures, inputs)
    assert [group.layer for group in found.groups][:2] == ["stem", "free.0"]
    if flat:  # once they are tried
        assert PIXELS.count(33) == 1
    else:
        assert set(PIXELS) == {33}
