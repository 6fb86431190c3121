r"""An idea for the probe: Gate Decorator in place of our own pruner, to tune its ticks and tocks.

    python benchmarks/paper/probe.py --idea benchmarks/paper/ticks.py x.variant=alone x.stop=0.5

The host alone is what is tuned, for its smooth variants have to beat it at its best.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import decayprune as dp
from decayprune.hosts import GateDecorator, TickTock


def setup(run: Any) -> None:
    """Replace the pruner.

    Args:
        run: Of the probe; ``x.variant`` is ``alone``, ``sp`` or ``sp_sr``, ``x.stop`` the share of
            the run in which gates close, ``x.tock_lr`` the highest learning rate of tocks (null:
            that of the run).
    """
    probe, x = run.probe, run.probe.x
    variant, top = x.get("variant", "sp_sr"), x.get("tock_lr")
    plan = TickTock.for_run(probe.steps)
    run.pruner.close()
    run.pruner = GateDecorator(
        run.model,
        run.optimizer,
        run.example,
        budget=dp.Budget(macs=probe.budget),
        schedule=replace(plan, stop=int(x.get("stop", 0.125) * probe.steps)),
        decay_steps=1 if variant == "alone" else probe.steps // 10,
        rectify=dp.Rectify() if variant == "sp_sr" else None,
        tock_lr=None if top is None else (top / 10, top),
    )
