"""What one process measures, in all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decayprune.latency.sharing import shared


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
