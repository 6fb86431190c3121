"""Our own choice: the part of a ranking by importance that meets a budget and wastes nothing of it.

At each round of a schedule :class:`ImportanceSelector` commits the shortest prefix of the ranking
that meets the budget of that round, without those of it that the budget can spare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from decayprune.cost import Budget, CostModel
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify
from decayprune.method.selector import Selection
from decayprune.selection.depth import Depth, Worth
from decayprune.selection.importance import Importance, magnitude, normalised, refreshed
from decayprune.selection.schedule import Schedule
from decayprune.selection.target import Target, lowest_first, rank_within
from decayprune.structures.refusals import by_weight
from decayprune.structures.structure_map import StructureMap

Scope = Literal["width", "global", "local", "isomorphic"]

_NAMED = 3  # reasons in an error, of those for which widths stay
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
        round_to: Each width ends as a multiple of so many channels (or uncut); None takes any. A
            number for each of the ``G`` groups says what suits it, and gives way where the budget
            would be out of reach.
        floor: Share of each group that stays in any case (at least one structure).
        spared: Groups that are left whole as long as the budget can be met without them, bool,
            shape ``(G,)``; None: none.
        rectify: Its tournament has a round commit more than it needs.
        worth: Gives that of each residual branch, shape ``(B,)``, or None: its importance, as
            without it.

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
        round_to: int | Sequence[int] | None = None,
        floor: float = 0.1,
        spared: Tensor | None = None,
        rectify: Rectify | None = None,
        worth: Worth | None = None,
    ) -> None:
        if scope not in get_args(Scope):
            known = ", ".join(map(repr, get_args(Scope)))
            raise ValueError(f"scope is one of {known}; found {scope!r}.")
        if isinstance(round_to, int) and round_to < 1:
            raise ValueError(f"round_to is a whole number of channels from 1, found {round_to!r}.")
        if not 0 <= floor < 1:
            raise ValueError(f"floor is a share of each layer in [0, 1), found {floor!r}.")
        self._structures, self._cost = structures, cost
        self._budget, self._schedule = budget, schedule
        self.importance, self._scope, self._rectify = importance, scope, rectify
        self.depth = Depth(structures, cost, worth)
        self._families = [group.family or group.layer for group in structures.groups]
        self._width = torch.tensor(
            [group.width for group in structures.groups], dtype=torch.int64, device="cpu"
        )
        self._floor = floor
        self._channels = torch.tensor(
            [group.channels for group in structures.groups], dtype=torch.int64, device="cpu"
        )
        self._spared = torch.zeros_like(self._width, dtype=torch.bool) if spared is None else spared
        self.set_multiples(round_to)

    def set_multiples(self, multiples: int | Sequence[int] | None) -> None:
        """Let widths end as other multiples.

        Args:
            multiples: As ``round_to`` of the selector.

        Raises:
            ValueError: The budget cannot be reached.
        """
        self._multiples = multiples
        each = multiples if isinstance(multiples, Sequence) else [multiples or 1] * len(self._width)
        channels = torch.tensor(each, dtype=torch.int64, device="cpu")
        self._target = self._target_of(channels)
        while isinstance(multiples, Sequence) and not self._target.met(self._least()):
            if bool((channels == 1).all()):
                break
            channels = (channels // 2).clamp(min=1)
            self._target = self._target_of(channels)
        self.check_reachable()

    def _target_of(self, channels: Tensor) -> Target:
        """The budget at widths that are multiples of so many channels in each group."""
        # A structure may hold several channels (a head); gates and halves of a width share one.
        unit, sizes = channels // torch.gcd(channels, self._channels), self._cost.sizes
        least = torch.ceil(sizes * self._floor - 1e-9).to(torch.int64).clamp(min=1)
        least = torch.where(self._spared, sizes, least)
        gone = 0 if self.depth.leaving(self._budget) else 1
        least = torch.where(self.depth.groups, gone, least)
        return Target(
            group_of=self._structures.group_of,
            cost=self._cost,
            met=lambda kept: self._cost.meets(self._budget, kept),
            floor=torch.minimum(-(-least // unit) * unit, sizes),
            unit=unit,
        )

    def _least(self) -> Tensor:
        """The least widths that are surely reached, shape ``(G,)``."""
        return self.depth.surely_left(self._target.floor, self._budget)

    def check_reachable(self) -> None:
        """Raise a ValueError unless the budget can be met; it says what can.

        What is spared is spared no longer if it cannot be met otherwise.
        """
        if self._target.met(self._least()):
            return
        if bool(self._spared.any()):
            self._spared = torch.zeros_like(self._spared)
            self.set_multiples(self._multiples)
            return
        bounds = self._budget.bounds
        lowest = self._cost.fractions(self._least(), list(bounds))
        reachable = ", ".join(f"{name}={math.ceil(lowest[name] * 1e4) / 1e4:g}" for name in bounds)
        stays = "; ".join(by_weight(self._structures.refusals)[:_NAMED])
        raise ValueError(
            f"The budget {self._budget} cannot be reached. With every prunable width at its floor "
            f"the model keeps {reachable}. Raise the budget to at least that, lower floor or "
            f"round_to, or free what stays whole (the widest: {stays or 'nothing'}). "
            "dp.inspect(model, example_inputs) lists all of it."
        )

    def preview(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Structures left in each group if norms decided now, all rounds at once, shape ``(G,)``.

        Args:
            parameters: By name.
        """
        active = torch.ones(self._structures.num_structures, dtype=torch.bool, device="cpu")
        score = magnitude(self._structures, parameters).detach().cpu()
        order = lowest_first(active, self._rank(score, active))
        sizes = self._cost.sizes
        return sizes - self._target.count(self._target.needed(order, sizes))

    @property
    def reads_gradients(self) -> bool:
        """Whether the importance has declared that it does."""
        return bool(getattr(self.importance, "reads_gradients", False))

    def _budget_at(self, step: int) -> Budget | None:
        """The budget of the rounds that have begun, if one has."""
        begun = self._schedule.rounds_begun(step)
        return self._budget.after(begun / self._schedule.rounds) if begun else None

    def pauses(self, step: int) -> bool:
        """Whether no round begins at a step: nothing is selected unless something is released."""
        return self._schedule.rounds_begun(step) == self._schedule.rounds_begun(step - 1)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last round has selected and the budget holds with all commitments."""
        if self._schedule.rounds_begun(step) < self._schedule.rounds:
            return False
        return self._target.met(self._cost.keep_counts(state.committed.cpu()))

    def releasable(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Those of ``ids`` that may be released with the budget still met, the first preferred."""
        budget = self._budget_at(step - 1)  # a round that begins now picks what it needs by itself
        if budget is None:
            return ids
        target = self._target.within(budget)
        kept = self._cost.keep_counts(state.committed.cpu())
        return target.releasable(self.depth.back_first(ids.cpu()), kept)

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Selection | None:
        """The part of the ranking that leaves for the budget of the current round."""
        new_round, budget = not self.pauses(step), self._budget_at(step)
        if budget is None or not (new_round or released):
            return None
        target = self._target.within(budget)
        phase, cool_until, score = _on_host(state)
        active = phase == ACTIVE
        cooling = active & (cool_until >= step)
        scores = None
        if new_round:
            scores = score = self._fresh_scores(parameters, score, active & ~cooling)
        ranking = lowest_first(active, self._rank(score, active))
        order = self.depth.first(ranking, score, cooling, budget)
        oldest = lowest_first(cooling, cool_until)
        kept = self._cost.keep_counts(~active)
        extra = self._extra(step) if new_round else 0.0
        # A tournament gives back by its verdict, and shares of groups are kept as they are.
        if extra or self._scope in ("local", "isomorphic"):
            ids = target.shortest(order, kept, oldest)
            more = self.depth.first(ranking, score, cooling, budget, extra)
            ids = target.enrolled(ids, more[~cooling[more]], kept, extra)
        else:
            ids = target.needed(order, kept, oldest)
        return Selection(ids, scores, ids[cooling[ids]])

    def _extra(self, step: int) -> float:
        """Share that a round beginning now commits beyond its need: 0 if it is never judged."""
        if self._rectify is None:
            return 0.0
        left = self._schedule.stop - 1 - step  # nothing is released from stop on
        return self._rectify.verdict.extra_share(self._schedule.decay_steps, left)

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
        pool_of_group = torch.tensor([names.index(f) for f in self._families], device="cpu")
        pool = pool_of_group[group_of] if self._scope == "isomorphic" else group_of
        # Rank within the pool as a share of it: a common threshold takes the same share of each.
        position = rank_within(relative.masked_fill(~active, -torch.inf), pool)
        share = (position + 0.5) / torch.bincount(pool)[pool]
        if self._scope == "width":  # what stays above the threshold falls with the width
            pull = (self._width * self._cost.sizes) ** _NARROWING
            return -(1 - share) * pull[group_of].to(share.dtype)
        return share


def _on_host(state: LifecycleState) -> tuple[Tensor, Tensor, Tensor]:
    """Phases, ends of cool-downs and scores, in one copy, for each makes the host wait."""
    bits = state.score.view(torch.int32)
    phase, cool_until, score = torch.stack([state.phase.int(), state.cool_until, bits]).cpu()
    return phase, cool_until, score.view(state.score.dtype)
