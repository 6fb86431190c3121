"""A process alone, and one of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from decayprune.structures.ranks import averaged, several, shared


def test_only_within_a_group(tmp_path: Path) -> None:
    assert several() is False
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert several() is True
    finally:
        torch.distributed.destroy_process_group()
    assert several() is False


def test_alone_everybody_measures() -> None:
    assert shared(lambda: 3) == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_measures_for_all(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def broadcast(box: list[Any], src: int) -> None:
        assert src == 0
        box[0] = "of the first"

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    assert shared(lambda: measured.append(1)) == "of the first"
    assert len(measured) == (rank == 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_if_the_first_of_several_fails_all_do(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = [None, "ValueError: no operator for that"]

    def broadcast(box: list[Any], src: int) -> None:
        assert box == (sent if rank == 0 else [None] * 2)
        box[:] = sent

    def fails() -> None:
        raise ValueError("no operator for that")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    kind, text = (
        (ValueError, "^no operator") if rank == 0 else (RuntimeError, "first process.*no op")
    )
    with pytest.raises(kind, match=text):
        shared(fails)


def test_alone_the_mean_is_what_was_found() -> None:
    found = torch.tensor([1.0, 3.0])
    assert averaged(found) is found


def test_the_mean_of_several_is_the_same_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    others = torch.tensor([5.0, 7.0])

    def gather(everybody: list[Any], mine: torch.Tensor) -> None:
        everybody[:] = [mine, others]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert averaged(torch.tensor([1.0, 3.0])).tolist() == [3.0, 5.0]
