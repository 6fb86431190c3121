"""A few structures that decay, without a pruner."""

from __future__ import annotations

import torch
from torch import nn

from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.live_weights import LiveWeights
from decayprune.structures import trace


def begun(dtype: torch.dtype = torch.float32) -> tuple[LifecycleState, LiveWeights]:
    """Of five channels, 1 and 4 decay, 4 since a step later and for longer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)
    structures = trace(model, torch.randn(2, 3, dtype=dtype))
    weights = LiveWeights(structures, dict(model.named_parameters()), [])
    state = LifecycleState.fresh(5)
    one = torch.ones(1)
    state = lifecycle.begin(state, torch.tensor([1]), length=one, decay_steps=6)
    state = lifecycle.tick(state, state.committed)
    return lifecycle.begin(state, torch.tensor([4]), length=one, decay_steps=9), weights
