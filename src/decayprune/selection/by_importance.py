"""Our own choice: the part of a ranking by importance that meets a budget and wastes nothing of it.

At each round of a schedule :class:`ImportanceSelector` commits the shortest prefix of the ranking
that meets the budget of that round, without those of it that the budget can spare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify, judged_in_time
from decayprune.method.selector import Picks
from decayprune.selection.importance import Importance, normalised, refreshed
from decayprune.selection.schedule import Schedule
from decayprune.selection.target import affordable, rank_within
from decayprune.structures.structure_map import StructureMap

Scope = Literal["width", "global", "local", "isomorphic"]

_NARROWING = 1 / 3
"""How much faster wide groups are cut: what stays of a group is ``width ** -_NARROWING``."""


class ImportanceSelector:
    """Commits the least important structures, round by round, until the budget is met.

    Args:
        structures: What can be pruned.
        cost: What remains costs.
        budget: Upper bounds on it, for the last round.
        schedule: The rounds.
        importance: Gives the scores; the lowest go first.
        scope: ``"width"``: the share of a group that stays falls with its width, as its inverse
            cube root, and scores decide within a group; ``"global"``: scores are compared over the
            whole model, each divided by its group's mean; ``"local"``: every group loses the same
            share; ``"isomorphic"``: groups of the same kind and shape are ranked together, and
            every such family loses the same share.
        round_to: Each width ends as a multiple of it (or uncut), or None.
        floor: Share of each group that stays in any case (at least one structure).
        rectify: Its tournament has a round commit more than it needs.

    Raises:
        ValueError: The budget cannot be reached; says what can.
    """

    def __init__(
        self,
        structures: StructureMap,
        cost: CostModel,
        budget: Budget,
        schedule: Schedule,
        importance: Importance,
        *,
        scope: Scope = "width",
        round_to: int | None = None,
        floor: float = 0.1,
        rectify: Rectify | None = None,
    ) -> None:
        if scope not in get_args(Scope):
            known = ", ".join(map(repr, get_args(Scope)))
            raise ValueError(f"scope is one of {known}; found {scope!r}.")
        if round_to is not None and round_to < 1:
            raise ValueError(f"round_to is a whole number of channels from 1, found {round_to!r}.")
        if not 0 <= floor < 1:
            raise ValueError(f"floor is a share of each layer in [0, 1), found {floor!r}.")
        self._structures, self._cost = structures, cost
        self._budget, self._schedule = budget, schedule
        self.importance, self._scope, self._rectify = importance, scope, rectify
        self._families = [group.family or group.layer for group in structures.groups]
        width = torch.tensor([group.width for group in structures.groups], dtype=torch.int64)
        self._widths = width * cost.sizes
        # round_to counts channels; a structure may hold several (a head).
        self._unit = torch.ones_like(cost.sizes)
        if round_to is not None:
            self._unit = round_to // torch.gcd(torch.full_like(width, round_to), width)
        least = torch.ceil(cost.sizes * floor - 1e-9).to(torch.int64).clamp(min=1)
        least = -(-least // self._unit) * self._unit
        self._floor = torch.minimum(least, cost.sizes)
        self._check_reachable()

    def _check_reachable(self) -> None:
        if self._cost.meets(self._budget, self._floor):
            return
        bounds = self._budget.bounds
        lowest = self._cost.fractions(self._floor, list(bounds))
        reachable = ", ".join(f"{name}={math.ceil(lowest[name] * 1e4) / 1e4:g}" for name in bounds)
        raise ValueError(
            f"The budget {self._budget} cannot be reached. With every prunable width at its floor "
            f"the model keeps {reachable}. Raise the budget to at least that, lower floor or "
            "round_to, put fewer layers into ignored_layers, or see dp.inspect(model, "
            "example_inputs) for the widths that are left alone and why."
        )

    def _limits(self, step: int) -> Budget | None:
        begun = self._schedule.rounds_begun(step)
        return self._budget.after(begun / self._schedule.rounds) if begun else None

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last round has selected and the budget holds with all commitments."""
        if self._schedule.rounds_begun(step) < self._schedule.rounds:
            return False
        return self._cost.meets(self._budget, self._cost.keep_counts(state.committed.cpu()))

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids`` that may be released with the budget still met, the first preferred."""
        limits = self._limits(step - 1)  # a round that begins now picks what it needs by itself
        if limits is None:
            return ids
        return self._affordable(ids.cpu(), state.committed.cpu(), limits).to(ids.device)

    def _affordable(self, ids: Tensor, committed: Tensor, limits: Budget) -> Tensor:
        return affordable(
            ids,
            self._cost.keep_counts(committed),
            self._structures.group_of,
            lambda kept: self._cost.meets(limits, kept),
            self._unit,
        )

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """The part of the ranking that leaves for the budget of the current round."""
        new_round = self._schedule.rounds_begun(step) > self._schedule.rounds_begun(step - 1)
        limits = self._limits(step)
        if limits is None or not (new_round or released):
            return None
        phase, score = state.phase.cpu(), state.score.cpu()
        cooling = state.cooling(step).cpu()
        scores = None
        if new_round:
            scores = score = self._fresh_scores(parameters, score, (phase == ACTIVE) & ~cooling)
        ranking = self._rank(score, phase == ACTIVE)
        kept = self._cost.keep_counts(phase != ACTIVE)
        extra = self._extra(step) if new_round else 0.0

        eligible = (phase == ACTIVE) & ~cooling
        chosen = self._commit(ranking, eligible, kept, limits, extra)
        warmed = None
        if chosen is None:  # the pool is empty: override cool-downs, the oldest first
            until = state.cool_until.cpu() + torch.where(cooling, 0, 1 << 30)
            oldest = torch.sort(until, stable=True).indices
            pool = oldest[: int(cooling.sum())]

            def enough(count: int) -> bool:
                return (
                    self._commit(ranking, _with(eligible, pool[:count]), kept, limits) is not None
                )

            count = 1 + _last_true(lambda n: not enough(n), pool.numel())
            warmed = pool[:count]
            chosen = self._commit(ranking, _with(eligible, warmed), kept, limits)
        ids = torch.zeros(0, dtype=torch.int64) if chosen is None else chosen
        # A tournament gives back by its verdict, and shares of groups are kept as they are.
        if not extra and self._scope in ("width", "global"):
            committed = _with(phase != ACTIVE, ids)
            ids = ids[~torch.isin(ids, self._affordable(ids.flip(0), committed, limits))]
        return Picks(ids.to(state.phase.device), scores, warmed)

    def _extra(self, step: int) -> float:
        """Share that a round beginning now commits beyond its need: 0 if it is never judged."""
        rule, decay_steps = self._rectify, self._schedule.decay_steps
        last = self._schedule.stop - 1  # nothing is released from stop on
        if rule is None or rule.rule != "tournament" or step >= last:
            return 0.0
        # A decay is judged at its share, or by the last step that may release, if it lasts so long.
        in_time = judged_in_time(rule.judge_at, decay_steps) or last < step + decay_steps
        return rule.extra if in_time else 0.0

    def _fresh_scores(
        self, parameters: Mapping[str, Tensor], old: Tensor, refresh: Tensor
    ) -> Tensor:
        new = self.importance(self._structures, parameters)
        size = self._structures.num_structures
        if not isinstance(new, Tensor) or new.shape != (size,):
            found = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(
                f"importance must return a tensor of shape ({size},), one score per structure; "
                f"found {found}."
            )
        new = new.detach().to("cpu", old.dtype)
        if not bool(new.isfinite().all()):
            raise ValueError("importance returned a score that is not finite; check the weights.")
        return refreshed(old, new, refresh, self._structures.group_of)

    def _rank(self, score: Tensor, active: Tensor) -> Tensor:
        """Comparable scores in the chosen scope, shape ``(S,)``."""
        group_of = self._structures.group_of
        relative = normalised(score, group_of)
        if self._scope == "global":
            return relative
        names = sorted(set(self._families))
        pool_of_group = torch.tensor([names.index(f) for f in self._families])
        pool = pool_of_group[group_of] if self._scope == "isomorphic" else group_of
        # Rank within the pool as a share of it: a common threshold takes the same share of each.
        position = rank_within(relative.masked_fill(~active, -torch.inf), pool)
        share = (position + 0.5) / torch.bincount(pool)[pool]
        if self._scope == "width":  # what stays above the threshold falls with the width
            return -(1 - share) * self._widths[group_of].to(share.dtype) ** _NARROWING
        return share

    def _commit(
        self,
        ranking: Tensor,
        eligible: Tensor,
        kept: Tensor,
        limits: Budget,
        extra: float = 0.0,
    ) -> Tensor | None:
        """Structures to commit, or None if all eligible ones together are not enough."""
        order = torch.sort(ranking, stable=True).indices
        order = order[eligible[order]]
        groups = self._structures.group_of[order]
        place = rank_within(torch.arange(order.numel()), groups)
        room = (kept - self._floor).clamp(min=0)
        free = place < room[groups]
        order, groups, place = order[free], groups[free], place[free]
        pool = torch.bincount(groups, minlength=kept.numel())

        def removed(count: int) -> Tensor:
            wanted = torch.bincount(groups[:count], minlength=kept.numel())
            return self._rounded(kept, wanted, pool)

        total = order.numel()
        short = _last_true(
            lambda n: not self._cost.meets(limits, kept - removed(n)), total, start=-1
        )
        if short == total:
            return None
        need = short + 1
        counts = removed(min(total, math.ceil(need * (1 + extra))))
        return order[place < counts[groups]]

    def _rounded(self, kept: Tensor, wanted: Tensor, pool: Tensor) -> Tensor:
        """How many to remove from each group so that what stays is a whole number of units."""
        left, unit = kept - wanted, self._unit
        up = torch.where(left % unit == 0, left, (left // unit + 1) * unit)
        down = torch.maximum((left // unit) * unit, self._floor)
        uncut = kept == self._cost.sizes  # an uncut width may stay as odd as it is
        left = torch.where(up <= kept, up, torch.where(uncut, kept, down))
        return torch.minimum(kept - left, pool).clamp(min=0)


def _with(mask: Tensor, ids: Tensor) -> Tensor:
    return mask.index_fill(0, ids, True)


def _last_true(test: Callable[[int], bool], stop: int, start: int = 0) -> int:
    """Largest ``n`` in ``start .. stop`` for which a test that turns false once is true.

    ``start`` is taken to pass without being asked.
    """
    low, high = start, stop
    while low < high:
        middle = (low + high + 1) // 2
        if test(middle):
            low = middle
        else:
            high = middle - 1
    return low
