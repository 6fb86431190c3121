import pytest
import torch
from torch import nn

from decayprune.latency import Latency, benchmark


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Dropout(), nn.Linear(width, 4))


def test_counts_and_restores() -> None:
    before, after = net(512), net(16)
    before.train()
    before[1].eval()  # a part that somebody froze stays frozen
    after.eval()
    found = benchmark(before, after, torch.zeros(32, 8), runs=3, min_run_ms=0.1)
    assert (found.macs_before, found.macs_after) == (32 * 512 * 12, 32 * 16 * 12)
    assert (found.batch_size, found.runs) == (32, 3)
    assert found.ideal == 32
    assert [m.training for m in before.modules()] == [True, True, False, True]
    assert not after.training


def test_the_larger_model_is_slower() -> None:
    wide = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    found = benchmark(wide, nn.Linear(512, 512), torch.zeros(64, 512), runs=5)
    assert found.speedup > 2


def test_inputs_may_be_a_tuple_or_a_dict() -> None:
    model = nn.Bilinear(4, 4, 2)
    pair = (torch.zeros(3, 4), torch.zeros(3, 4))
    assert benchmark(model, model, pair, runs=1).batch_size == 3
    named = {"input1": pair[0], "input2": pair[1]}
    assert benchmark(model, model, named, runs=1).batch_size == 3


def test_ratios_say_their_direction() -> None:
    found = Latency(4.0, 2.0, 100, 40, 8, 5, 1, "a machine")
    assert (found.speedup, found.ideal) == (2.0, 2.5)
    assert found.to_json()["speedup"] == 2.0
    assert "4.00 ms -> 2.00 ms, 2.00x faster (MACs alone would give 2.50x)" in str(found)


def test_runs_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1; found 0"):
        benchmark(nn.Identity(), nn.Identity(), torch.zeros(1), runs=0)
