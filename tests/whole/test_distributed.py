"""Two processes, started by torchrun, decide the same without a word about pruning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import two_processes

TESTS = Path(__file__).parents[1]
ORDERS = ("before the wrap", "after the wrap", "between steps", "inspected")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(TESTS / "ddp_run.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("importance", ["magnitude", "random", "sensitivity"])
def test_ranks_decide_alike_and_end_with_the_same_weights(
    ranks: list[dict[str, Any]], importance: str
) -> None:
    one, two = (rank[importance] for rank in ranks)
    assert one["moves"] == two["moves"]
    assert len({kind for _, kind, _ in one["moves"]} & {"decay", "prune"}) == 2
    assert one["trained"] == two["trained"]
    assert one["fine-tuned"] == two["fine-tuned"]
    assert one["fine-tuned"] != one["trained"]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_decide_otherwise_are_told_apart(ranks: list[dict[str, Any]], rank: int) -> None:
    torn = ranks[rank]["torn"]
    assert (
        "has not decided the same on all ranks (rank 1 is not at one with rank 0)" in torn["said"]
    )
    assert torn["steps"] == 16


@pytest.mark.parametrize("find_unused", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_averaged_whenever_the_wrapper_came(
    ranks: list[dict[str, Any]], order: str, find_unused: bool
) -> None:
    one, two = (rank[f"{order} {find_unused}"] for rank in ranks)
    assert all(one["agree"])
    assert one["trained"] == two["trained"]
    assert one["moves"] == two["moves"]
    assert one["removed"] == two["removed"]
    assert bool(one["removed"]) == bool(one["moves"]) == (order != "inspected")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_living_wrapper_is_refused_and_a_new_one_trains_on(
    ranks: list[dict[str, Any]], rank: int
) -> None:
    result = ranks[rank]["magnitude"]
    assert "del parallel; pruner.compact()" in result["refused"]
    assert result["whole"] == 12  # the refusal left the model uncut
    assert result["macs"] <= 0.5
    assert result["error"] <= 1e-5
    assert result["shape"] == [8, 4]


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="the page shards as torch does from 2.7 on")
def test_what_was_pruned_is_sharded_and_trains_as_if_it_were_whole(tmp_path: Path) -> None:
    """The second half of docs/integrations/fsdp.md, by two processes."""
    said = two_processes.run("fsdp_shards.py", tmp_path)
    for rank in said:
        assert 0 < rank["held"] < rank["left"] < rank["dense"]
        for way in ("loaded", "from shapes alone"):
            for found, expected in zip(rank[way], rank["alone"], strict=True):
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for refusal in ("inspect", "DecayPruner"):
            assert "is sharded by FSDP, where no process holds a whole layer" in rank[refusal]
            assert "docs/integrations/fsdp.md" in rank[refusal]
    assert said[0]["held"] + said[1]["held"] == said[0]["left"]
