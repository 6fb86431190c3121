import inspect
import json
import time
from typing import Any

import pytest
import torch
from torch import nn

from decayprune.latency.benchmark import Latency, benchmark, flushes_denormals
from decayprune.latency.race import Race


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.Dropout(), nn.Linear(width, 4))


def test_counts_and_restores() -> None:
    before, after = net(512), net(16)
    before.train()
    before[1].eval()  # a part that somebody froze stays frozen
    after.eval()
    found = benchmark(before, after, torch.zeros(32, 8), runs=3, min_run_ms=0.1)
    assert (found.macs_before, found.macs_after) == (32 * 512 * 12, 32 * 16 * 12)
    assert found.batch_size == 32
    assert 3 <= found.runs <= 12
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
    assert found.to_dict()["speedup"] == 2.0
    assert json.loads(found.to_json()) == found.to_dict()
    assert "4.00 ms -> 2.00 ms, 2.00x faster (MACs alone would give 2.50x)" in str(found)
    assert "2.00x" in found._repr_html_()
    assert "2.50x" in found._repr_html_()
    assert "compiled" not in found._repr_html_()


def test_runs_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1; found 0"):
        benchmark(nn.Identity(), nn.Identity(), torch.zeros(1), runs=0)


def images(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3))


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"dict of keyword arguments .* found str"):
        benchmark(net(4), net(4), "images")
    with pytest.raises(TypeError, match="that hold a tensor; found none"):
        benchmark(net(4), net(4), ())
    with pytest.raises(ValueError, match=r"model_b does not run on .* Pass one batch as both"):
        benchmark(net(4), nn.Linear(3, 3), torch.zeros(2, 8))


def test_images_are_timed_in_channels_last_and_left_as_they_were() -> None:
    before, after = images(16), images(4)
    found = benchmark(before, after, torch.zeros(2, 3, 8, 8), runs=2, min_run_ms=0.1)
    assert found.channels_last is not None
    assert all(ms > 0 for ms in found.channels_last)
    assert before[0].weight.is_contiguous()
    assert before[2].weight.is_contiguous()
    words = found.memory_format.replace("_", " ")  # which one wins is the machine's affair
    assert f"fastest in {words} format" in str(found) or f"and {words} after format" in str(found)
    assert benchmark(net(8), net(4), torch.zeros(2, 8), runs=1).channels_last is None


def test_compiled_models_are_timed_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    models = images(16), images(4)

    def compile_(forward: Any, *, dynamic: bool) -> Any:
        assert not dynamic
        compiled.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    found = benchmark(*models, torch.zeros(2, 3, 8, 8), runs=1, min_run_ms=0.1, compiled=True)
    assert found.compiled is not None
    assert "\ncompiled: " in str(found)
    assert len(compiled) == 2
    assert len({id(forward.__code__) for forward in compiled}) == 2
    twins = [inspect.getclosurevars(forward).nonlocals["call"].func for forward in compiled]
    assert [twin[0].weight.shape[0] for twin in twins] == [16, 4]
    assert all(twin not in models for twin in twins)


def latency(**figures: Any) -> Latency:
    usual: dict[str, Any] = {
        "before_ms": 4.0,
        "after_ms": 2.0,
        "macs_before": 100,
        "macs_after": 40,
        "batch_size": 8,
        "runs": 5,
        "threads": 1,
        "device": "a machine",
        "contiguous": (4.0, 2.0),
    }
    return Latency(**(usual | figures))


def test_what_was_measured_is_what_is_recommended() -> None:
    found = latency(channels_last=(3.0, 2.1), round_to=16, flushes_denormals=True)
    assert found.memory_format == "contiguous"
    assert latency(channels_last=(3.0, 1.9)).memory_format == "channels_last"
    assert latency().memory_format == "contiguous"
    lines = str(found).splitlines()
    assert lines[1:3] == [
        "contiguous: 4.00 ms -> 2.00 ms, 2.00x faster",
        "channels last: 3.00 ms -> 2.10 ms, 1.43x faster",
    ]
    assert lines[-1] == (
        "On this machine: denormals are flushed to zero, fastest in channels last before and "
        "contiguous after format, prune with round_to=16."
    )


def test_of_one_thread_the_processor_s_time_counts_and_that_is_said() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = benchmark(net(8), net(4), torch.zeros(2, 8), runs=1)
    finally:
        torch.set_num_threads(threads)
    fine = time.get_clock_info("process_time").resolution < 1e-4
    assert found.processor_time is fine
    assert found.threads == 1
    assert "the processor's time counts" in str(latency(processor_time=True))
    assert "the processor's time" not in str(latency())


def test_each_model_counts_in_its_faster_format(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [[4.0] * 6, [3.0, 3.2] * 3, [2.0] * 6, [5.0] * 6]
    monkeypatch.setattr(Race, "times", lambda self, calls, sides: times)
    found = benchmark(images(16), images(4), torch.zeros(2, 3, 8, 8), runs=2)
    assert (found.contiguous, found.channels_last) == ((4.0, 2.0), (3.1, 5.0))
    assert (found.before_ms, found.after_ms) == (3.1, 2.0)
    assert found.memory_format == "contiguous"
    assert found.interval == pytest.approx((1.5, 1.6))


def test_what_has_not_settled_is_said() -> None:
    shaky = latency(interval=(1.7, 2.3))
    assert not shaky.settled
    assert "\nThe speed-up has not settled (1.70x to 2.30x): time it again with" in str(shaky)
    steady = latency(interval=(1.99, 2.02))
    assert steady.settled
    assert steady.to_dict()["settled"]
    assert "settled" not in str(steady)
    assert not latency().settled
    assert "has not settled (too few runs): " in str(latency())


def test_denormals_are_stated() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert flushes_denormals()
    finally:
        torch.set_flush_denormal(False)
    assert not flushes_denormals()
