"""Steps that a device records and repeats are those that are taken without a graph, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import decayprune as dp
from benchmarks import accelerator
from decayprune.app.run import models
from loops import INPUTS, moves, net, pruner_for, train

BEGIN, STEPS = 3, 24
SCHEDULE = dp.Schedule(start=BEGIN, stop=18, decay_steps=8, rounds=2)


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with accelerator.simulated():
        yield


class Run:
    """A run with gradients that are made up, and written into the same tensors at every step.

    Args:
        name: A network of the command.
        way: How the loop is written.
        rectify: Who is released.
    """

    def __init__(
        self, name: str = "resnet8", way: str = "plain", rectify: dp.Rectify | None = None
    ) -> None:
        torch.manual_seed(0)
        self.model = accelerator.moved(models.build(name, 1, 10, 8))
        parameters = list(self.model.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        shares = [parameters[::2], parameters[1::2]] if way == "two optimizers" else [parameters]
        self.optimizers = [
            torch.optim.SGD(share, 0.05, momentum=0.9, weight_decay=1e-2, foreach=True)
            for share in shares
        ]
        self.way = way
        self.pruner = self.built(rectify or dp.Rectify(extra=0.2))
        self.broken: tuple[int, ...] = ()
        self.graph: accelerator.Graph | None = None
        self.kinds, self.trail = "", list[dict[str, Tensor]]()
        self._generator = torch.Generator().manual_seed(1)

    def built(self, rectify: dp.Rectify) -> dp.DecayPruner:
        pruner = dp.DecayPruner(
            self.model,
            self.optimizers,
            torch.zeros(1, 1, 8, 8).to(accelerator.DEVICE),
            budget=dp.Budget(structures=0.8),
            round_to=None,
            schedule=SCHEDULE,
            rectify=rectify,
            slices="all" if self.way == "all slices" else "carriers",
        )
        pruner._session._tried = True  # the trial cut is no part of a step
        if self.way == "attached":
            pruner.attach()
        return pruner

    def step(self) -> None:
        """What is captured, or taken as it is."""
        if self.way == "observed":
            self.pruner.observe()
            for parameter in self.model.parameters():  # clipped
                assert parameter.grad is not None
                parameter.grad.nan_to_num_(posinf=0.0)
                parameter.grad.mul_(0.5)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.way != "attached":
            self.pruner.step()

    def go(self, steps: int, *, graphed: bool) -> None:
        """Take some steps; those that can be are captured once and repeated."""
        for _ in range(steps):
            broken = len(self.trail) + 1 in self.broken
            for parameter in self.model.parameters():
                made = torch.randn(parameter.shape, generator=self._generator) * 0.01
                assert parameter.grad is not None
                parameter.grad.copy_(made.fill_(torch.inf) if broken else made)
            if graphed and self.pruner.replayable:
                self.repeat()
            else:
                self.graph, self.kinds = None, self.kinds + "."
                self.step()
            self.trail.append(self.tensors())

    def repeat(self) -> None:
        if self.graph is None:
            self.graph, self.kinds = accelerator.Graph(), self.kinds + "("
            before = self.tensors()
            with accelerator.recording(self.graph):
                self.step()
            torch.testing.assert_close(self.tensors(), before, rtol=0, atol=0)
        with accelerator.counting() as count:
            self.pruner.replay(self.graph)
        looks = "note_revived" if count.syncs else ""
        assert count.all == (0, 0, 0) or looks, count.where
        self.kinds += "r"

    def tensors(self) -> dict[str, Tensor]:
        momentum = {
            f"momentum {i}": state["momentum_buffer"].cpu()
            for optimizer in self.optimizers
            for i, state in enumerate(optimizer.state.values())
        }
        state = self.pruner._session.decayer.state.state_dict()  # without asking what counted
        kept = {**self.model.state_dict(), **state}
        return {**{key: value.cpu() for key, value in kept.items()}, **momentum}


def compared(plain: Run, graphed: Run) -> None:
    for step, (wanted, found) in enumerate(zip(plain.trail, graphed.trail, strict=True), 1):
        for key, value in wanted.items():
            assert torch.equal(found[key], value), f"step {step}: {key}"
    assert moves(graphed.pruner) == moves(plain.pruner)
    assert (graphed.pruner.steps, graphed.pruner.waited) == (
        plain.pruner.steps,
        plain.pruner.waited,
    )


WAYS = ["plain", "attached", "observed", "two optimizers", "all slices"]


@pytest.mark.parametrize(
    ("name", "way"), [*(("resnet8", way) for way in WAYS), ("vit_slim", "plain")]
)
def test_repeated_steps_are_the_same_to_the_bit(name: str, way: str) -> None:
    plain, graphed = Run(name, way), Run(name, way)
    plain.go(STEPS, graphed=False)
    graphed.go(STEPS, graphed=True)
    compared(plain, graphed)
    assert {move[1] for move in moves(plain.pruner)} == {"decay", "release", "prune"}
    # Selected at 3 and 10, judged at 7 and 14, pruned at 10 and 17, looked at a step later.
    assert graphed.kinds == ".(r..(rr..(r..(rr..(r..(" + "r" * 6


@pytest.mark.parametrize("broken", [(6,), (13, 14), (20,)])
def test_steps_that_are_not_finite_wait_and_are_counted_later(broken: tuple[int, ...]) -> None:
    plain, graphed = Run(way="observed"), Run(way="observed")
    for run in (plain, graphed):
        run.broken = broken
        run.go(STEPS, graphed=run is graphed)
    compared(plain, graphed)
    assert graphed.pruner.waited == len([step for step in broken if step < 20])
    assert "r" in graphed.kinds


def test_what_was_saved_between_repeated_steps_goes_on_from_there() -> None:
    plain, graphed = Run(), Run()
    plain.go(STEPS, graphed=False)
    graphed.go(6, graphed=True)
    assert graphed.kinds.endswith("rr")
    saved = graphed.pruner.state_dict()
    there = {key: value.clone() for key, value in graphed.model.state_dict().items()}
    buffers = [s["momentum_buffer"] for s in graphed.optimizers[0].state.values()]
    kept = [buffer.clone() for buffer in buffers]
    generator = graphed._generator.get_state()
    graphed.go(1, graphed=True)  # what was saved is not written to

    graphed.model.load_state_dict(there)
    for buffer, value in zip(buffers, kept, strict=True):
        buffer.copy_(value)
    graphed._generator.set_state(generator)
    graphed.trail.pop()
    graphed.pruner.close()
    graphed.pruner, graphed.graph = graphed.built(dp.Rectify(extra=0.2)), None
    graphed.pruner.load_state_dict(saved)
    assert not graphed.pruner.replayable
    graphed.go(STEPS - 6, graphed=True)
    compared(plain, graphed)


def test_a_rule_that_judges_at_every_step_leaves_nothing_to_repeat() -> None:
    run = Run(rectify=dp.Rectify(rule="thresholds", warm_up=0.5))
    run.go(10, graphed=True)
    assert run.kinds == ".(r..(rr...."


# ---------------------------------------------------------------- what is refused


def ready(way: str = "plain") -> Run:
    run = Run(way=way)
    run.go(BEGIN + 1, graphed=False)
    assert run.pruner.replayable
    return run


def untouched(run: Run, action: Callable[[], Any], match: str) -> None:
    ledger = run.pruner._session.ledger
    # what is known without asking the device
    before, counted = run.tensors(), (ledger.last, list(ledger.events))
    with pytest.raises(RuntimeError, match=match):
        action()
    torch.testing.assert_close(run.tensors(), before, rtol=0, atol=0)
    assert (ledger.last, ledger.events) == counted


def captured(run: Run, action: Callable[[], Any]) -> accelerator.Graph:
    graph = accelerator.Graph()
    with accelerator.recording(graph):
        action()
    return graph


@pytest.mark.parametrize("steps", [BEGIN - 1, BEGIN, BEGIN + 3])
def test_a_step_with_a_decision_is_not_captured(steps: int) -> None:
    run = Run()
    run.go(steps, graphed=False)
    assert not run.pruner.replayable
    untouched(
        run, lambda: captured(run, run.step), rf"At step {steps + 1} the pruner has something"
    )
    run.go(STEPS - steps, graphed=True)  # and all goes on
    plain = Run()
    plain.go(STEPS, graphed=False)
    compared(plain, run)


def test_a_step_with_a_decision_is_not_repeated() -> None:
    run = ready()
    graph = captured(run, run.step)
    for _ in range(2):
        run.pruner.replay(graph)
    assert not run.pruner.replayable
    untouched(run, lambda: run.pruner.replay(graph), "At step 7 the pruner has something to decide")


def test_a_graph_of_before_another_step_is_not_repeated() -> None:
    run = ready()
    graph = accelerator.Graph()
    untouched(run, lambda: run.pruner.replay(graph), "captured last, and none was, or another")
    graph = captured(run, run.step)
    run.go(1, graphed=False)
    untouched(run, lambda: run.pruner.replay(graph), "captured last, and none was, or another")


@pytest.mark.parametrize("part", ["optimizer", "pruner", "observe"])
def test_parts_of_a_step_are_captured_together(part: str) -> None:
    run = ready("observed")
    optimizer, pruner = run.optimizers[0], run.pruner
    match = "Part of a step is in a captured graph, and part is not"
    if part == "observe":
        pruner.observe()
        untouched(run, lambda: captured(run, optimizer.step), match)
    elif part == "pruner":
        optimizer.step()
        untouched(run, lambda: captured(run, pruner.step), match)
    else:
        captured(run, optimizer.step)
        untouched(run, pruner.step, match)
    run.go(1, graphed=False)  # the next is a new one
    assert pruner.steps == BEGIN + 2


def test_a_device_that_records_is_not_asked_whether_the_last_step_counted() -> None:
    run = Run()
    run.go(BEGIN + 1, graphed=False)
    assert run.pruner._session.decayer.waiting.unread
    untouched(run, lambda: captured(run, run.step), "Ask for pruner.replayable before each step")


def test_a_graph_that_is_repeated_behind_the_back_is_found() -> None:
    run = ready()
    captured(run, run.step).replay()
    with pytest.raises(RuntimeError, match=r"1 steps were repeated with graph\.replay\(\)"):
        run.go(1, graphed=False)


def test_a_scaler_that_skips_steps_is_refused() -> None:
    run = ready()
    run.optimizers[0].found_inf = torch.zeros(1)  # type: ignore[attr-defined]
    untouched(run, lambda: captured(run, run.step), "a GradScaler decides on the host")


def test_once_it_was_cut_a_graph_is_just_repeated() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner = pruner_for(model, optimizer)
    assert not pruner.replayable
    train(model, optimizer, 40, pruner)
    pruner.compact()
    graph, total = accelerator.Graph(), torch.zeros(())
    graph.asked.append((torch.ops.aten.add_.Tensor, (total, torch.ones(())), {}, None))
    assert pruner.replayable
    pruner.replay(graph)
    assert float(total) == 1
    assert model(INPUTS).shape == (2, 4)
