"""Who is asked, and when; that ranks are told apart is shown by two processes elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from decayprune.method.moves import Moves
from decayprune.session import agreement
from decayprune.session.agreement import Agreement
from decayprune.structures import trace
from loops import INPUTS, net


class Ranks:
    """A group of two, of which the other says what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, other: str | None = None) -> None:
        self.asked: list[str] = []
        self.other = other
        wrapper = SimpleNamespace(process_group="group")
        monkeypatch.setattr(agreement, "wrapper_of", lambda model: wrapper)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
        monkeypatch.setattr(torch.distributed, "all_gather_object", self.gather)

    def gather(self, everybody: list[Any], mine: str, group: str) -> None:
        assert group == "group"
        self.asked.append(mine)
        everybody[:] = [mine, mine if self.other is None else self.other]


def event(step: int, structure: int) -> Moves:
    return Moves(step, "decay", trace(net(), INPUTS), torch.tensor([structure]))


def run(steps: int, *events: Moves) -> None:
    subject = Agreement(net(), "pruner")
    for step in range(1, steps + 1):
        subject.note(step, [e for e in events if e.step == step])


def test_alone_nobody_is_asked() -> None:
    run(64, event(3, 1))


def test_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch)
    run(40, event(3, 1), event(20, 2))
    assert len(ranks.asked) == 2
    assert len(set(ranks.asked)) == 2  # what happened between is in it


def test_the_digest_is_of_what_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch)
    for happened in (event(3, 1), event(3, 2), event(4, 1), event(3, 1)):
        run(16, happened)
    one, two, three, again = ranks.asked
    assert len({one, two, three}) == 3
    assert again == one


def test_words(monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks(monkeypatch, other="something else")
    with pytest.raises(RuntimeError, match=r"By step 16 the pruner has not decided the same"):
        run(20, event(3, 1))
