"""Who decays, and what is held of them."""

from __future__ import annotations

import pytest
import torch

from decaying import begun
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState
from decayprune.method.members import Members


def test_they_are_who_decays() -> None:
    found = Members.of(*begun(), whole=False)
    assert found.ids.tolist() == [1, 4]
    assert found.mask.tolist() == [False, True, False, False, True]
    assert sorted(found.ages.T.tolist()) == [[0, 9], [1, 6]]


@pytest.mark.parametrize("whole", [False, True])
def test_carriers_shrink_or_all_slices(whole: bool) -> None:
    state, weights = begun()
    found = Members.of(state, weights, whole=whole)
    assert set(found.carriers.names) == {"0.weight", "0.bias"}
    shrinks = {"0.weight", "0.bias", "2.weight"} if whole else {"0.weight", "0.bias"}
    assert set(found.shrinking.names) == shrinks


def test_in_half_precision_lengths_are_read() -> None:
    assert not Members.of(*begun(), whole=False).read
    assert Members.of(*begun(torch.bfloat16), whole=False).read


def test_of_nobody() -> None:
    _, weights = begun()
    found = Members.of(LifecycleState.fresh(5), weights, whole=False)
    assert not found.ids.numel()
    assert not found.ages.numel()


def test_who_begins_too_short_has_nothing_to_lose() -> None:
    state, weights = begun()
    length = torch.tensor([0.0])
    state = lifecycle.begin(state, torch.tensor([2]), length=length, decay_steps=6)
    found = Members.of(state, weights, whole=False)
    assert found.ids[found.short].tolist() == [2]


def test_who_is_pruned_decays_no_longer() -> None:
    state, weights = begun()
    found = Members.of(lifecycle.finish(state, torch.tensor([1])), weights, whole=False)
    assert found.ids.tolist() == [4]
    assert found.pruned.tolist() == [False, True, False, False, False]
