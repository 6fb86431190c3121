"""HESSO, the successor of DHSPG in Only Train Once: a mixed saliency, and decay in periods.

At the start of each period the structures with the lowest of five mixed scores are picked, and
shrink linearly until its end. That is smooth pruning already; ``decay_steps`` adds that norms are
*held* to the schedule whatever training does, with a length of its own, and ``rectify`` releases.

Source: Chen et al., HESSO, arXiv 2409.09085; formulas as in its published code.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decayprune.cost import Budget
from decayprune.hosts.otov2.directions import Variant
from decayprune.hosts.otov2.products import Products
from decayprune.hosts.otov2.zero_invariant_optimizer import ZeroInvariantOptimizer
from decayprune.method.lifecycle import ACTIVE, LifecycleState
from decayprune.method.rectify import Rectify, extra_share
from decayprune.method.selector import Picks
from decayprune.selection.target import affordable, fitting, rank_within
from decayprune.structures.example import ExampleInputs

_GUARD = 1e-8


def saliency(products: Products, numel: Tensor) -> Tensor:
    """The mean of five scores, each divided by its L2 norm over all structures; the lowest go.

    Norm, mean norm, cosine of weights and direction (plus 1), and the first- and second-order
    Taylor terms of setting the structure to zero.

    Args:
        products: Inner products of weights ``x`` and direction ``d``.
        numel: Weights per structure, shape ``(S,)``.
    """
    norm = products.xx.sqrt()
    taylor = products.xd.abs()
    scores = (
        norm,
        norm / (numel + 1e-6),
        products.xd / (norm + _GUARD) / (products.dd.sqrt() + _GUARD) + 1,
        taylor,
        0.5 * taylor**2,
    )
    return sum(
        (0.2 * score / ((score.square().sum() + _GUARD).sqrt() + _GUARD) for score in scores),
        torch.zeros_like(norm),
    )


class HESSO(ZeroInvariantOptimizer):
    """Trains and prunes at once, in periods, from scratch or from a checkpoint.

    Example::

        optimizer = HESSO(model, inputs, lr=0.1, target_group_sparsity=0.7, start_step=1000,
                          pruning_steps=1000, pruning_periods=10)
        for inputs, targets in loader:
            criterion(model(inputs), targets).backward()
            optimizer.step(); optimizer.zero_grad()
        report = optimizer.compact()

    Args:
        model: The bare module, trained in place.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        lr: Learning rate.
        pruning_steps: Optimizer steps of all periods together.
        pruning_periods: How many periods.
        variant: ``"sgd"`` (heavy ball with ``momentum``), ``"adam"`` or ``"adamw"``.
        momentum: Of SGD.
        dampening: Of SGD's momentum.
        betas: Of Adam and AdamW.
        weight_decay: None: 1e-2 for AdamW, else 0.
        target_group_sparsity: Share of the structures to prune.
        start_step: Optimizer steps before the first period.
        group_divisible: Keep a multiple of it in each group; narrower groups are left alone.
        budget: What remains at the end, instead of ``target_group_sparsity``.
        decay_steps: Steps over which a structure decays, its norm held to the schedule. None, as
            published: to the end of its period, each step multiplying by what the schedule says.
        rectify: When a decaying structure is released; None: never. Without ``decay_steps`` the
            norm is then held over the period.
        slices: Which slices shrink where norms are held: ``"carriers"`` or ``"all"``; the
            published decay shrinks all.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        params: What to train, as for any torch optimizer; None: all parameters of the model.

    Raises:
        ValueError: The target cannot be reached, or a value is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        lr: float,
        *,
        pruning_steps: int,
        pruning_periods: int = 1,
        variant: Variant = "sgd",
        momentum: float = 0.0,
        dampening: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float | None = None,
        target_group_sparsity: float = 0.5,
        start_step: int = 0,
        group_divisible: int = 1,
        budget: Budget | None = None,
        decay_steps: int | None = None,
        rectify: Rectify | None = None,
        slices: Literal["carriers", "all"] = "carriers",
        ignored_layers: Iterable[str | nn.Module] = (),
        params: Iterable[Any] | None = None,
    ) -> None:
        if not 1 <= pruning_periods <= pruning_steps or start_step < 0:
            raise ValueError(
                "pruning_periods is at least 1, pruning_steps at least as many, start_step 0 or "
                f"later; found {pruning_periods}, {pruning_steps} and {start_step}."
            )
        self.period = pruning_steps // pruning_periods
        self.periods, self.start_step = pruning_periods, start_step
        held = decay_steps is not None or rectify is not None
        super().__init__(
            model,
            example_inputs,
            lr,
            variant=variant,
            base={
                "momentum": momentum,
                "dampening": dampening,
                "betas": betas,
                "weight_decay": weight_decay,
            },
            params=params,
            ignored_layers=ignored_layers,
            group_divisible=group_divisible,
            leave_small=True,
            budget=budget,
            target=target_group_sparsity,
            decay_steps=max(1, self.period - 1) if decay_steps is None else decay_steps,
            rectify=rectify,
            last_release=start_step + self.period * pruning_periods,
            slices=slices if held else "all",
            hold=held,
        )
        self._quota = int(self.structures.num_structures * min(target_group_sparsity, 0.999))
        self._extra = extra_share(rectify, self.decay_steps)
        self._scores: Tensor | None = None
        every = torch.arange(self.structures.num_structures)
        self._check_reachable(self.cost.sizes - self._removed(every, self.cost.sizes))

    # ---------------------------------------------------------------- the target of each period

    def _begun(self, step: int) -> int:
        """Periods that have begun once this step is over."""
        return max(0, min(self.periods, (step - self.start_step - 1) // self.period + 1))

    def _opens(self, step: int) -> bool:
        """Whether a period begins with this step."""
        return self._begun(step) > self._begun(step - 1)

    def _enough(self, kept: Tensor, begun: int | None = None) -> bool:
        begun = self.periods if begun is None else begun
        if self.budget is not None:
            return begun == 0 or self.cost.meets(self.budget.after(begun / self.periods), kept)
        # The remainder of the division falls to the last period.
        share = self._quota if begun == self.periods else begun * (self._quota // self.periods)
        return int((self.cost.sizes - kept).sum()) >= share

    # ---------------------------------------------------------------- scores and picks

    def _look(self, step: int, direction: Mapping[str, Tensor]) -> None:
        self._scores = None
        if self._opens(step):
            products = self._sums.products(self._parameters, direction, self._rates())
            self._scores = saliency(products, self._sums.numel)

    def select(
        self,
        state: LifecycleState,
        step: int,
        parameters: Mapping[str, Tensor],
        *,
        released: bool,
    ) -> Picks | None:
        """The lowest scores at the start of a period; replacements of what was released."""
        begun = self._begun(step)
        if self._scores is None and not released:
            return None
        cooling, active = state.cooling(step).cpu(), (state.phase == ACTIVE).cpu()
        score, fresh = state.score.cpu(), None
        if self._scores is not None:
            # Frozen from the pick to the end of a cool-down: a score sinks with the norm.
            score = torch.where(active & ~cooling, self._scores.cpu().to(score), score)
            fresh = score
        # Cooling structures only where nothing else is left, the longest out of the game first.
        rank = torch.where(cooling, state.cool_until.cpu().double(), score.double())
        order = torch.sort(rank, stable=True).indices
        order = torch.cat([order[(active & ~cooling)[order]], order[cooling[order]]])
        extra = self._extra if self._scores is not None else 0.0
        ids = self._shortest(order, begun, extra)
        if self.budget is not None and not extra:
            ids = fitting(
                order,
                self._session.kept(),
                self.structures.group_of,
                lambda kept: self._enough(kept, begun),
                self.cost.macs,
                lambda order: self._shortest(order, begun),
                self._unit,
            )
        warmed = ids[cooling[ids]]
        device = state.phase.device
        return Picks(ids.to(device), fresh, warmed if warmed.numel() else None)

    @property
    def _unit(self) -> Tensor:
        return torch.full_like(self.cost.sizes, self.group_divisible)

    def _shortest(self, order: Tensor, begun: int, extra: float = 0.0) -> Tensor:
        """The shortest part of an order that meets the target of the periods begun."""
        kept = self._session.kept()
        groups = self.structures.group_of[order]
        place = rank_within(torch.arange(order.numel()), groups)

        def enough(count: int) -> bool:
            return self._enough(kept - self._removed(order[:count], kept), begun)

        need = _first(enough, order.numel())
        counts = self._removed(order[: math.ceil(need * (1 + extra))], kept)
        return order[place < counts[groups]]

    def _removed(self, wanted: Tensor, kept: Tensor) -> Tensor:
        """How many of each group leave if these are wanted: what stays is rounded up."""
        unit = self.group_divisible
        going = torch.bincount(self.structures.group_of[wanted], minlength=kept.numel())
        left = ((kept - going + unit - 1) // unit * unit).clamp(min=unit)
        return (kept - left).clamp(min=0)

    def spare(self, state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        """Which of ``ids``, the first preferred, may be released with the target still met."""
        # A period that begins with this very step picks afterwards what it needs.
        begun, groups = self._begun(step - 1), self.structures.group_of
        back = affordable(
            ids.cpu(),
            self._session.kept(),
            groups,
            lambda kept: self._enough(kept, begun),
            self._unit,
        )
        return back.to(ids.device)

    def done(self, state: LifecycleState, step: int) -> bool:
        """Whether the last period has begun and its target holds, commitments counted."""
        kept = self.cost.keep_counts(state.committed.cpu())
        return self._begun(step) == self.periods and self._enough(kept)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "start_step": self.start_step,
            "period": self.period,
            "pruning_periods": self.periods,
        }


def _first(test: Callable[[int], bool], stop: int) -> int:
    """Smallest number in ``0 .. stop`` for which a test that turns true once is true."""
    return bisect_left(range(stop), True, key=test)
