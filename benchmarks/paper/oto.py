r"""An idea for the probe: DHSPG (OTOv2) in place of our own pruner, to tune its penalty.

    python benchmarks/paper/probe.py --idea benchmarks/paper/oto.py x.variant=alone x.lmbda=0.5

The host alone is what is tuned, for its smooth variants have to beat it at its best.
"""

from __future__ import annotations

from typing import Any

import decayprune as dp
from decayprune.hosts import DHSPG


class Host:
    """The host with the surface of a pruner: as an optimizer it takes its step by itself."""

    def __init__(self, host: DHSPG) -> None:
        self.observe, self.compact, self._host = host.observe, host.compact, host

    @property
    def finished(self) -> bool:
        """Whether the budget is met and nothing decays."""
        return self._host.finished

    @property
    def events(self) -> list[dp.Event]:
        """What happened."""
        return self._host.events

    def step(self) -> None:
        """Nothing: :meth:`DHSPG.step` has done it."""


def setup(run: Any) -> None:
    """Replace optimizer and pruner.

    Args:
        run: Of the probe; ``x.variant`` is ``alone``, ``sp`` or ``sp_sr``, ``x.lmbda`` the
            strength of the penalty, ``x.epsilon`` the half-space.
    """
    probe, x = run.probe, run.probe.x
    variant = x.get("variant", "sp_sr")
    run.pruner.close()
    run.optimizer = DHSPG(
        run.model,
        run.example,
        probe.lr,
        momentum=probe.momentum,
        weight_decay=probe.weight_decay,
        lmbda=x.get("lmbda"),
        epsilon=x.get("epsilon", 0.95),
        tolerance_group_sparsity=0.0,
        stop_step=probe.steps // 4,
        budget=dp.Budget(macs=probe.budget),
        decay_steps=1 if variant == "alone" else probe.steps // 10,
        rectify=dp.Rectify() if variant == "sp_sr" else None,
    )
    run.pruner = Host(run.optimizer)
