"""What of a model can be pruned, what cannot, and why: the look before the first step."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from decayprune import notebook
from decayprune.cost import CostModel
from decayprune.structures.example import ExampleInputs
from decayprune.structures.refusals import alike
from decayprune.structures.structure_map import Refusal, StructureMap
from decayprune.structures.tracing.trace import trace
from decayprune.structures.wrappers import check_whole
from decayprune.surgery.branches import offer_branches
from decayprune.surgery.trial import refuse_uncuttable


@dataclass(frozen=True)
class GroupSummary:
    """One prunable width.

    Attributes:
        layer: Module that produces it.
        layers: Every module that is cut with it.
        structures: How many structures it has.
        macs: Multiply-accumulates that go if only one structure of it stays.
        params: Parameters that go likewise.
    """

    layer: str
    layers: tuple[str, ...]
    structures: int
    macs: int
    params: int


@dataclass(frozen=True)
class BranchSummary:
    """One residual branch that can leave whole.

    Attributes:
        layer: Module at its end.
        layers: Every module that leaves with it.
        macs: Multiply-accumulates that go with it.
        params: Parameters that go with it.
    """

    layer: str
    layers: tuple[str, ...]
    macs: int
    params: int


@dataclass(frozen=True, repr=False)
class Inspection:
    """Everything :func:`inspect` found; ``print()`` it for a table.

    Attributes:
        groups: Prunable widths.
        refusals: Widths that are left alone, each with its reason.
        macs: Multiply-accumulates of one example.
        params: Parameters.
        least_macs: Fraction of the MACs that remains with one structure in each group.
        seconds: How long it took to find out.
        structures: The map itself, without residual branches.
        branches: Residual branches that ``Budget(depth=...)`` counts, if they were asked for.
        kept_branches: Those that cannot be removed, each with its reason.
    """

    groups: tuple[GroupSummary, ...]
    refusals: tuple[Refusal, ...]
    macs: int
    params: int
    least_macs: float
    seconds: float
    structures: StructureMap
    branches: tuple[BranchSummary, ...] = ()
    kept_branches: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        """A table of the groups, and under it the refusals."""
        width = max((len(g.layer) for g in self.groups), default=5)
        lines = [
            f"{self.macs:,} MACs, {self.params:,} parameters. Can be pruned: "
            f"{self.structures.num_structures:,} structures in {len(self.groups)} groups, down to "
            f"{self.least_macs:.1%} of the MACs. Found in {self.seconds:.2f} s.",
        ]
        if self.groups:
            heads = f"{'MACs in it':>15}  {'parameters':>12}  layers cut together"
            lines += ["", f"{'group':{width}}  {'structures':>10}  {heads}"]
        for group in self.groups:
            others = ", ".join(group.layers[:3]) + (", ..." if len(group.layers) > 3 else "")
            lines.append(
                f"{group.layer:{width}}  {group.structures:>10,}  {group.macs:>15,}  "
                f"{group.params:>12,}  {others}"
            )
        if self.refusals:
            lines += ["", "Left alone:", *_by_reason(self.refusals)]
        if self.branches:
            lines += ["", *self._of_branches()]
        if self.kept_branches:
            lines += ["", "Residual branches that stay:"]
            lines += [f"  {branch.layer}: {branch.reason}" for branch in self.kept_branches]
        return "\n".join(lines)

    def _of_branches(self) -> list[str]:
        """A table of the branches."""
        title = "residual branch"
        width = max(len(title), *(len(branch.layer) for branch in self.branches))
        return [
            f"{title:{width}}  {'MACs in it':>15}  {'parameters':>12}",
            *(f"{b.layer:{width}}  {b.macs:>15,}  {b.params:>12,}" for b in self.branches),
        ]

    def __repr__(self) -> str:
        """One line; ``str()`` has the tables."""
        return (
            f"<Inspection: {self.structures.num_structures:,} structures in {len(self.groups)} "
            f"groups, {len(self.refusals)} widths left alone, down to {self.least_macs:.1%} of "
            f"{self.macs:,} MACs>"
        )

    def _repr_html_(self) -> str:
        """The tables, for notebooks."""
        groups = notebook.table(
            ("group", "structures", "MACs in it", "parameters"),
            [(g.layer, g.structures, g.macs, g.params) for g in self.groups],
            title=str(self).partition("\n")[0],
            below="",
        )
        if self.branches:
            groups += notebook.table(
                ("residual branch", "MACs in it", "parameters"),
                [(b.layer, b.macs, b.params) for b in self.branches],
                title="Residual branches",
                below="",
            )
        refused = (*self.refusals, *self.kept_branches)
        if not refused:
            return groups
        left = [(r.layer or "the model", r.width or "branch", r.reason) for r in refused]
        return groups + notebook.table(
            ("layer", "width", "reason"), left, title="Left alone", below=""
        )


def _by_reason(refusals: Iterable[Refusal]) -> list[str]:
    """Every refusal under its reason; where only the particulars differ, under the first."""
    lines = []
    for kind in alike(refusals):
        lines.append(f"  {kind[0].reason}:")
        # With no-break spaces no line ends inside "name (8 wide)".
        names = ", ".join(f"{r.layer or 'the model'}\xa0({r.width}\xa0wide)" for r in kind)
        rows = textwrap.wrap(names, 92, break_long_words=False, break_on_hyphens=False)
        lines += [f"    {row}".replace("\xa0", " ") for row in rows]
    return lines


def inspect(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ignored_layers: Iterable[str | nn.Module] = (),
    *,
    depth: bool = False,
) -> Inspection:
    """What can be pruned, what not and why, and what each group is worth.

    Args:
        model: Left as it is.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        ignored_layers: Names, globs or modules to leave alone.
        depth: Look for residual branches that can leave whole, too.

    Raises:
        ValueError: The model is sharded, so that no process sees its widths, or does not run.
    """
    check_whole(model)
    began = time.perf_counter()
    if not isinstance(ignored_layers, (str, nn.Module)):
        ignored_layers = tuple(ignored_layers)  # read twice
    structures = trace(model, example_inputs, ignored_layers)
    structures = refuse_uncuttable(model, structures, example_inputs)
    cost = CostModel(structures, {name: p.shape for name, p in model.named_parameters()})
    macs, params = cost.macs(cost.sizes), cost.params(cost.sizes)
    groups = []
    for number, group in enumerate(structures.groups):
        alone = cost.sizes.clone()
        alone[number] = 1
        groups.append(
            GroupSummary(
                group.layer,
                group.layers,
                group.size,
                macs - cost.macs(alone),
                params - cost.params(alone),
            )
        )
    branches, kept = _branches(model, structures, example_inputs, ignored_layers, depth=depth)
    least = cost.macs(torch.ones_like(cost.sizes)) / max(macs, 1)
    return Inspection(
        groups=tuple(groups),
        refusals=structures.refusals,
        macs=macs,
        params=params,
        least_macs=least,
        seconds=time.perf_counter() - began,
        structures=structures,
        branches=branches,
        kept_branches=kept,
    )


def _branches(
    model: nn.Module,
    structures: StructureMap,
    example_inputs: ExampleInputs,
    ignored_layers: Iterable[str | nn.Module],
    *,
    depth: bool,
) -> tuple[tuple[BranchSummary, ...], tuple[Refusal, ...]]:
    """Residual branches that can be removed, and those that cannot; none if nobody asks."""
    if not depth:
        return (), ()
    offered = offer_branches(model, structures, example_inputs, ignored_layers)
    cost = CostModel(offered, {name: p.shape for name, p in model.named_parameters()})
    found = []
    for branch in offered.branches:
        number = int(offered.group_of[branch.structure])
        group, left = offered.groups[number], cost.sizes.clone()
        left[number] = 0
        macs, params = (at(cost.sizes) - at(left) for at in (cost.macs, cost.params))
        found.append(BranchSummary(group.layer, group.layers, macs, params))
    return tuple(found), offered.refusals[len(structures.refusals) :]
