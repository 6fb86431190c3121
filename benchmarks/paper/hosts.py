r"""An idea for the probe: a host of the study in place of our own pruner, to tune what it takes.

    python benchmarks/paper/probe.py --idea benchmarks/paper/hosts.py \
        x.host=dhspg x.variant=alone x.lmbda=0.5 --seeds 100-103

It is the host alone that is tuned, for its smooth variants have to beat it at its best.
``results/oto.jsonl`` (DHSPG) and ``results/ticks.jsonl`` (Gate Decorator; ``stop`` and ``tock_lr``
stand for ``x.ticks={"tick_steps": 4, "tock_steps": 8, "ticks": 4, "share": 0.05, "stop": 43}``
and ``x.tock_lr``) were made so, by one file for each host; ``results/oto_divisible.jsonl`` holds
``x.group_divisible`` of 1, 2, 4 and 8 at ``x.lmbda`` of 0.3, 1 and 3.
``x.per_mac=1`` asks another question, whether a tournament had better compare the work per MAC that
a structure saves (``results/per_mac.jsonl``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import decayprune as dp
from decayprune.app.run.methods import Pruning
from decayprune.app.study.plan import build
from decayprune.app.study.trial import Training, Trial
from decayprune.method import rectify
from decayprune.surgery.compact import CompactionReport


class Pruner:
    """A host of the study with the surface of a pruner."""

    def __init__(self, pruning: Pruning) -> None:
        self.observe, self.step, self._host = pruning.observe, pruning.step, pruning.host

    @property
    def finished(self) -> bool:
        """Whether the budget is met and nothing decays."""
        return self._host.finished

    @property
    def events(self) -> Sequence[dp.Event]:
        """What happened."""
        return self._host.events

    def compact(self) -> CompactionReport:
        """Cut."""
        return self._host.compact()


def setup(run: Any) -> None:
    """Replace optimizer and pruner.

    Args:
        run: Of the probe; ``x.host``, ``x.variant`` and ``x.decay_steps`` are those of a trial,
            ``x.per_mac`` is the power of the MACs that work is divided by, and every other ``x``
            is an option of the host.
    """
    probe = run.probe
    options = {"host": "depgraph", "variant": "sp_sr", **probe.x}
    per_mac = options.pop("per_mac", 0.0)
    trial = Trial(
        task="fashion-mnist",
        model=probe.model,
        host=options.pop("host"),
        variant=options.pop("variant"),
        decay_steps=options.pop("decay_steps", None),
        budget=probe.budget,
        training=Training(
            epochs=1, lr=probe.lr, momentum=probe.momentum, weight_decay=probe.weight_decay
        ),
        options=options,
    )
    run.pruner.close()
    pruning = build(trial, run.model, run.example, probe.steps)
    run.optimizer, run.pruner = pruning.optimizer, Pruner(pruning)
    if per_mac:
        _divide_work(pruning.host, per_mac)


_OBSERVE = rectify.observe


def _divide_work(host: Any, power: float) -> None:
    """Count the work of a structure per MAC that the dense network would save without it."""
    sizes, group_of = host.cost.sizes, host.structures.group_of
    one_less = sizes - torch.eye(sizes.numel(), dtype=sizes.dtype)
    all_of_it = host.cost.macs(sizes)
    saved = torch.tensor([float(all_of_it - host.cost.macs(kept)) for kept in one_less])
    share = (saved.mean() / saved)[group_of] ** power

    def observe(
        statistics: rectify.Statistics, ids: Tensor, **of_step: Tensor
    ) -> rectify.Statistics:
        found = _OBSERVE(statistics, ids, **of_step)
        now = found.work[ids] - statistics.work[ids]
        work = statistics.work.index_add(0, ids, now * share[ids].to(now))
        return found._replace(work=work)

    rectify.observe = observe
