r"""An idea for the probe: levers that the library does not have, to see whether it should.

    python benchmarks/paper/probe.py --idea benchmarks/paper/levers.py \
        x.restart=35 rectify=none --against rectify=none --seeds 100-103

``x.restart=35`` lets the learning rate fall to zero over the first 35 steps and start again;
``x.fresh_momentum=1`` forgets the momentum of all weights at the cut; ``x.wait=2`` holds the decay
still while the loss is more than twice that of the first five steps, for 70 steps at most;
``x.borda=1`` has a tournament release by the sum of the ranks in work and in score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decayprune.app.run.loop import cosine
from decayprune.method.lifecycle import LifecycleState
from decayprune.selection.importance import normalised

PATIENCE = 70
"""Steps that a decay waits at most, all together."""


def setup(run: Any) -> None:
    """Pull the levers that ``x`` names."""
    levers = dict(run.probe.x)
    for name in levers:
        {"restart": restart, "fresh_momentum": forget, "wait": wait, "borda": borda}[name](
            run, levers[name]
        )


def restart(run: Any, steps: int) -> None:
    """Two falls of the learning rate: one over the decay, one over the rest."""
    total, lr = run.probe.steps, run.probe.lr

    def rate(step: int) -> float:
        return cosine(step, 0, steps, lr) if step < steps else cosine(step, steps, total, lr)

    run.rate = rate


def forget(run: Any, _: bool) -> None:
    """Drop the optimizer's state when the model is cut."""
    compact = run.pruner.compact

    def cut() -> Any:
        report = compact()
        run.optimizer.state.clear()
        return report

    run.pruner.compact = cut


def wait(run: Any, times: float) -> None:
    """Skip steps of the pruner while the loss is high."""
    step, losses, left = run.pruner.step, [], [PATIENCE]

    def patient() -> None:
        losses.append(run.last_loss)
        calm = sum(losses[:5]) / len(losses[:5])
        if left[0] and run.last_loss > times * calm:
            left[0] -= 1
        else:
            step()

    run.pruner.step = patient


def borda(run: Any, _: bool) -> None:
    """Release first what is high in both rankings, that by work and that by score."""
    pruner = run.pruner
    chosen = pruner._selector.releasable

    def by_both(state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        score = normalised(state.score, pruner.structures.group_of)[ids]
        by_score = score.argsort(descending=True).argsort()
        return chosen(state, step, ids[(torch.arange(ids.numel()) + by_score).argsort(stable=True)])

    pruner._selector.releasable = by_both
