"""HESSO, the successor of DHSPG in Only Train Once: a mixed saliency, and decay in periods.

At the start of each period the structures with the lowest of five mixed scores are picked, and
shrink linearly until its end. That is smooth pruning already; ``decay_steps`` adds that norms are
*held* to the schedule whatever training does, with a length of its own, and ``rectify`` releases.

Source: Chen et al., HESSO, arXiv 2409.09085; formulas as in its published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decayprune.cost import Budget
from decayprune.hosts.otov2.directions import Variant, base_arguments
from decayprune.hosts.otov2.hesso_selection import HessoSelector, Periods
from decayprune.hosts.otov2.products import Products
from decayprune.hosts.otov2.zero_invariant_optimizer import ZeroInvariantOptimizer
from decayprune.method.rectify import Rectify
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

    _selector: HessoSelector

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
        self._periods = Periods(start=start_step, length=self.period, count=pruning_periods)
        held = decay_steps is not None or rectify is not None
        super().__init__(
            model,
            example_inputs,
            lr,
            variant=variant,
            base=base_arguments(momentum, dampening, betas, weight_decay),
            params=params,
            ignored_layers=ignored_layers,
            group_divisible=group_divisible,
            leave_small=True,
            budget=budget,
            target=target_group_sparsity,
            decay_steps=max(1, self.period - 1) if decay_steps is None else decay_steps,
            rectify=rectify,
        )
        self._selector = self._selecting()
        self._begin(
            self._selector,
            self._selector.target,
            last_release=self._periods.end,
            slices=slices if held else "all",
            hold=held,
        )

    def _selecting(self) -> HessoSelector:
        return HessoSelector(
            self.structures.group_of,
            self.cost,
            self._periods,
            budget=self.budget,
            sparsity=self.target,
            divisible=self.group_divisible,
            rectify=self.rectify,
            decay_steps=self.decay_steps,
        )

    def _look(self, step: int, direction: Mapping[str, Tensor]) -> None:
        self._selector.scores = None
        if self._periods.opens(step):
            products = self._sums.products(self._parameters, direction, self._rates())
            self._selector.scores = saliency(products, self._sums.numel)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "start_step": self.start_step,
            "period": self.period,
            "pruning_periods": self.periods,
        }
