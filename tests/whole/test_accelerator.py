"""What a step asks of an accelerator: how often the host waits, copies and launches."""

from __future__ import annotations

import pytest
import torch

import decayprune as dp
from benchmarks import accelerator
from decayprune.app.run import models
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState
from loops import moves

BEGIN, JUDGED, PRUNED = 3, 7, 10
"""Steps at which structures start to decay, are released, and are zero."""

MOST = {
    # Syncs, copies and launches of one step, the optimizer's hooks included: figures that may only
    # become smaller. Copies of what the host has decided wait for nothing; one that did would be
    # counted as a sync as well.
    "resnet8": {
        "idle": (0, 0, 0),
        "decaying": (0, 0, 58),
        "selection": (4, 6, 74),
        "release": (6, 5, 112),
        "prune": (3, 5, 163),
        "finished": (0, 0, 0),
    },
    "vit_slim": {
        "idle": (0, 0, 0),
        "decaying": (0, 0, 84),
        "selection": (4, 6, 124),
        "release": (6, 5, 147),
        "prune": (3, 5, 170),
        "finished": (0, 0, 0),
    },
}
CPU = torch.device("cpu")


def run(
    name: str, device: torch.device, broken: int | None = None
) -> tuple[dp.DecayPruner, list[accelerator.Count]]:
    """A run with gradients that are made up, and what each of its steps asked of the device."""
    torch.manual_seed(0)
    model, inputs = models.build(name, 1, 10, 8), torch.zeros(1, 1, 8, 8)
    if device != CPU:
        model, inputs = accelerator.moved(model), inputs.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=True)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        inputs,
        budget=dp.Budget(structures=0.8),
        round_to=None,  # the same widths on every device
        schedule=dp.Schedule(start=BEGIN, stop=2 * PRUNED, decay_steps=PRUNED - BEGIN + 1),
        rectify=dp.Rectify(extra=0.2),
    )
    pruner._session._tried = True  # the trial cut is no part of a step
    generator, counts = torch.Generator().manual_seed(1), []
    for step in range(PRUNED + 4):
        for parameter in model.parameters():
            # What is zero has no gradient, where an activation leaves it so.
            made = torch.randn(parameter.shape, generator=generator) * 0.01 * (step < PRUNED)
            parameter.grad = made.to(device)
        if step + 1 == broken:  # seen by the pruner, and then clipped
            good = [parameter.grad for parameter in model.parameters()]
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, torch.inf)
            pruner.observe()
            for parameter, grad in zip(model.parameters(), good, strict=True):
                parameter.grad = grad
        with accelerator.counting() as count:
            optimizer.step()
            pruner.step()
        counts.append(count)
    assert {e.kind for e in pruner.events} == {"decay", "release", "prune"}
    return pruner, counts


@pytest.mark.parametrize("name", sorted(MOST))
def test_a_step_asks_no_more_than_it_did(name: str) -> None:
    with accelerator.simulated():
        _, counts = run(name, accelerator.DEVICE)
    # The first step reads the optimizer's state, the one after the last prune looks for zeros.
    steps = {"idle": 2, "decaying": 5, "selection": BEGIN, "release": JUDGED, "prune": PRUNED}
    steps["finished"] = PRUNED + 2
    found = {phase: counts[step - 1] for phase, step in steps.items()}
    for phase, most in MOST[name].items():
        few = all(a <= b for a, b in zip(found[phase].all, most, strict=True))
        assert few, f"{phase}: {found[phase].all}, at most {most}: {found[phase].where}"


@pytest.mark.parametrize("name", sorted(MOST))
def test_an_accelerator_decides_and_computes_what_a_cpu_does(name: str) -> None:
    plain, _ = run(name, CPU)
    with accelerator.simulated():
        there, _ = run(name, accelerator.DEVICE)
        weights = {key: value.cpu() for key, value in there.model.state_dict().items()}
    assert moves(there) == moves(plain)
    assert {step for step, *_ in moves(there)} == {BEGIN, JUDGED, PRUNED}
    torch.testing.assert_close(weights, dict(plain.model.state_dict()), rtol=1e-5, atol=1e-6)


def test_what_is_asked_is_counted() -> None:
    """The counter sees what it is there for, when the library does it."""
    with accelerator.simulated():
        state = LifecycleState.fresh(5, accelerator.DEVICE)
        with accelerator.counting() as outside:
            assert not bool(state.age.any())
        with accelerator.counting() as waits:
            assert not state.decaying.numel()
        with accelerator.counting() as copies:
            LifecycleState.from_state_dict(
                {k: v.cpu() for k, v in state.state_dict().items()}, state
            )
        with pytest.raises(RuntimeError, match="on the same device"):
            lifecycle.finish(state, torch.tensor([0, 1]))
    assert outside.all == (0, 0, 0)
    assert waits.all == (1, 0, 2)  # compared, and what is true looked up
    assert {file for _, file, _ in waits.where} == {"method/lifecycle.py"}
    assert copies.copies == len(state.state_dict())


@pytest.mark.parametrize("at", [2, 5, BEGIN, JUDGED])
def test_a_step_that_is_not_finite_is_found_a_step_later_or_when_asked(at: int) -> None:
    """What a CPU knows at once, an accelerator tells with the next step; both do the same."""
    plain, _ = run("resnet8", CPU, broken=at)
    with accelerator.simulated():
        there, _ = run("resnet8", accelerator.DEVICE, broken=at)
        weights = {key: value.cpu() for key, value in there.model.state_dict().items()}
    assert (there.steps, there.waited) == (plain.steps, plain.waited)
    assert there.waited == (at > BEGIN)  # before, nothing decays and nobody looks
    assert moves(there) == moves(plain)
    torch.testing.assert_close(weights, dict(plain.model.state_dict()), rtol=1e-5, atol=1e-6)
