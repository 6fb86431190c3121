"""How often a repeated step counted, and whether it may be repeated."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from decaying import begun
from decayprune.method import lifecycle
from decayprune.method.members import Members
from decayprune.method.replays import Replays


def test_those_that_did_not_count_are_told_by_the_ages(caplog: pytest.LogCaptureFixture) -> None:
    state, weights = begun()
    members, replays = Members.of(state, weights, whole=False), Replays()
    before = members.ages.clone()
    for _ in range(5):
        replays.add(members)
    assert torch.equal(members.ages[0], before[0] + 5)
    for _ in range(3):  # what the device did
        state = lifecycle.tick(state)
    with caplog.at_level(logging.WARNING, "decayprune"):
        assert replays.missed(state, members) == 2
        assert "2 of the last 5 steps" in caplog.text
        assert replays.missed(state, members) == 0  # told once


def test_those_that_nobody_counted_are_an_error_once() -> None:
    state, weights = begun()
    members, replays = Members.of(state, weights, whole=False), Replays()
    replays.keep(state, members)
    ages = members.ages.clone()
    state = lifecycle.tick(lifecycle.tick(state))
    with pytest.raises(RuntimeError, match=r"2 steps were repeated with graph\.replay\(\)"):
        replays.missed(state, members)
    assert torch.equal(members.ages[0], ages[0] + 2)
    assert replays.missed(state, members) == 0


def test_where_nobody_decays_all_count() -> None:
    state, weights = begun()
    state = replace(state, phase=torch.zeros_like(state.phase))
    members, replays = Members.of(state, weights, whole=False), Replays()
    replays.add(members)
    assert replays.missed(state, members) == 0


def test_it_fits_the_very_same_alone() -> None:
    state, weights = begun()
    members, replays = Members.of(state, weights, whole=False), Replays()
    assert not replays.fits(state, members)
    replays.keep(state, members)
    assert replays.fits(state, members)
    assert not replays.fits(lifecycle.tick(state), members)
    assert not replays.fits(state, Members.of(state, weights, whole=False))
