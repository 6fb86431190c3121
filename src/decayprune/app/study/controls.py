"""Controls that could embarrass us: releases at random, and a small network from scratch.

With :class:`RandomRelease` the structures that a tournament judges, the moment, and the budget stay
as they are; only the order in which they are released is drawn. :func:`cut_to`
gives an untrained network the widths that a pruned one ended with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decayprune.method.rectify import Leaving, Rectify, Statistics, Tournament
from decayprune.selection.target import rank_within
from decayprune.structures import edits, sums
from decayprune.structures.tracing.trace import trace
from decayprune.surgery.compact import CompactionReport, compact


@dataclass(frozen=True, kw_only=True)
class RandomRelease(Rectify):
    """A tournament that releases random ones of those it judges, as many as it would anyway.

    Attributes:
        seed: What the draws follow from.
    """

    seed: int

    @property
    def verdict(self) -> Tournament:
        """The tournament, with its order drawn."""
        return _Drawn(self.extra, self.judge_at, self.seed)


@dataclass(frozen=True)
class _Drawn(Tournament):
    seed: int

    def leaving(
        self,
        statistics: Statistics,
        progress: Tensor,
        last_progress: Tensor,
        *,
        step: int,
        final: bool,
    ) -> Leaving:
        judged = super().leaving(statistics, progress, last_progress, step=step, final=final).order
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        drawn = torch.randperm(judged.numel(), generator=generator).to(judged.device)
        return Leaving(judged[drawn], None)


def cut_to(model: nn.Module, example: Tensor, kept: Sequence[int]) -> CompactionReport:
    """Make an untrained model as narrow as a pruned one, and draw its weights anew.

    Args:
        model: Fresh and dense; cut in place.
        example: Inputs for one forward pass.
        kept: Structures left in each group.

    Raises:
        ValueError: The widths are not those of this network.
    """
    structures = trace(model, example)
    sizes = torch.tensor([group.size for group in structures.groups])
    if len(kept) != len(sizes) or bool((torch.tensor(kept) > sizes).any()):
        raise ValueError(f"Expected widths for groups of {sizes.tolist()}, found {list(kept)}.")
    place = rank_within(torch.arange(structures.num_structures), structures.group_of)
    gone = place >= torch.tensor(kept)[structures.group_of]
    parameters = dict(model.named_parameters())
    used = {item.name: parameters[item.name] for item in structures.slices
            if item.name in parameters}  # fmt: skip
    edits.zero_(edits.picked(sums.labelled(structures), gone, used), used)
    report = compact(model, structures, gone, example_inputs=example, optimizers=())
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):  # as the networks of models.py begin
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return report
