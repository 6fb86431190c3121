"""What a step asks of an accelerator: how often the host waits, copies and launches."""

from __future__ import annotations

import pytest
import torch

import decayprune as dp
from benchmarks import accelerator
from decayprune.app.run import models
from decayprune.method import lifecycle
from decayprune.method.lifecycle import LifecycleState

BEGIN, JUDGED, PRUNED = 3, 7, 10
"""Steps at which structures start to decay, are released, and are zero."""

MOST = {
    # Syncs, copies and launches of one step, the optimizer's hooks included: figures that may only
    # become smaller.
    "resnet8": {
        "idle": (1, 0, 3),
        "decaying": (6, 1, 118),
        "selection": (15, 5, 209),
        "release": (16, 3, 191),
        "prune": (14, 4, 264),
        "finished": (1, 0, 3),
    },
    "vit_slim": {
        "idle": (1, 0, 3),
        "decaying": (6, 1, 182),
        "selection": (15, 5, 308),
        "release": (16, 3, 259),
        "prune": (14, 4, 271),
        "finished": (1, 0, 3),
    },
}
CPU = torch.device("cpu")


def run(name: str, device: torch.device) -> tuple[dp.DecayPruner, list[accelerator.Count]]:
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
        with accelerator.counting() as count:
            optimizer.step()
            pruner.step()
        counts.append(count)
    assert {e.step: e.kind for e in pruner.events} == {
        BEGIN: "decay",
        JUDGED: "release",
        PRUNED: "prune",
    }
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
    assert [(e.step, e.kind, e.structure) for e in there.events] == [
        (e.step, e.kind, e.structure) for e in plain.events
    ]
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
