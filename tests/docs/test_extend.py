"""The host that docs/extend/host.md builds: short, and as good a citizen as any other."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import decayprune as dp
from loops import INPUTS, OPTIMIZERS, net, same, train

PAGE = (Path(__file__).parents[2] / "docs" / "extend" / "host.md").read_text(encoding="utf-8")
(SOURCE,) = re.findall(r"## The whole file\n\n```python\n(.*?)```", PAGE, re.DOTALL)


def host_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    space: dict[str, Any] = {}
    exec(compile(SOURCE, "host.md", "exec"), space)
    return space["FaintestFirst"](
        model,
        optimizer,
        INPUTS,
        budget=dp.Budget(macs=0.5),
        at=3,
        decay_steps=8,
        rectify=dp.Rectify(rule="thresholds", t_rate=-0.9, t_len=-1e9, cool_down=1),
    )


def started() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    model = net()
    optimizer = OPTIMIZERS["SGD momentum"](model.parameters())
    return model, optimizer, host_of(model, optimizer)


def test_it_is_short() -> None:
    assert len(SOURCE.strip().splitlines()) < 60


def test_it_prunes_releases_and_is_cut() -> None:
    model, optimizer, host = started()
    average = copy.deepcopy(model)
    train(model, optimizer, 40, host)
    assert host.finished
    assert {event.kind for event in host.events} == {"decay", "release", "prune"}
    report = host.compact(copies=average)
    assert 0.3 < report.macs_after / report.macs_before <= 0.5
    assert report.max_rel_error < 1e-5
    assert average.c.weight.shape == model.c.weight.shape
    train(model, optimizer, 1, None, first=40)


@pytest.mark.parametrize("at", [2, 6, 14])
def test_it_resumes_bit_for_bit(at: int) -> None:
    straight, optimizer, host = started()
    train(straight, optimizer, 40, host)
    model, first, stopped = started()
    train(model, first, at, stopped)
    saved = copy.deepcopy([stopped.state_dict(), model.state_dict(), first.state_dict()])
    again, second, goes_on = started()
    goes_on.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    second.load_state_dict(saved[2])
    train(again, second, 40 - at, goes_on, first=at)
    assert same(straight, again)
    assert goes_on.events == host.events


def test_its_state_is_told_from_that_of_other_hosts() -> None:
    model, optimizer, host = started()
    with pytest.raises(ValueError, match="a FaintestFirst returned"):
        host.load_state_dict(host.state_dict() | {"owner": "DecayPruner"})
    assert model is host.model
    assert host.optimizers == [optimizer]
