"""A process alone, and one of a group."""

from __future__ import annotations

from pathlib import Path

import torch

from decayprune.structures.ranks import several


def test_only_within_a_group(tmp_path: Path) -> None:
    assert several() is False
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert several() is True
    finally:
        torch.distributed.destroy_process_group()
    assert several() is False
