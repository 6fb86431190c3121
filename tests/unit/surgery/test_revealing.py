"""Weights that would hide a wrong cut are drawn anew, in a twin, and only those."""

from __future__ import annotations

import torch
from torch import nn

from decayprune.structures.twin import twin
from decayprune.surgery.revealing import reveal_
from living import Living


def model() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Conv2d(8, 4, 1)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 1e-6)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), head, nn.Linear(4, 2))


def test_zeros_constants_and_near_zeros_are_drawn_anew() -> None:
    dense = model()
    living, copy = Living(dense), twin(dense)
    reveal_(copy)
    living.check()
    for layer, name in ((1, "weight"), (1, "bias"), (1, "running_mean"), (1, "running_var")):
        assert len(getattr(copy[layer], name).unique()) == 8
    assert float(copy[1].running_var.min()) > 0.4
    assert 0.1 < float(copy[2].weight.detach().std()) < 1
    assert float(copy[2].bias.detach().abs().min()) > 1e-4


def test_ordinary_weights_stay() -> None:
    dense = model()
    copy = twin(dense)
    reveal_(copy)
    for layer in (0, 3):
        for ours, theirs in zip(copy[layer].parameters(), dense[layer].parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() == theirs.data_ptr()  # not even copied


def test_the_draws_are_the_same_every_time_and_disturb_nobody() -> None:
    state = torch.get_rng_state()
    one, two = twin(model()), twin(model())
    torch.set_rng_state(state)
    for copy in (one, two):
        reveal_(copy)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
