"""DHSPG, the optimizer of OTOv2: one partition, an adaptive penalty, and half-space projection.

At one step all structures are split into those to keep and those to lose. The latter are pulled
towards zero by a penalty that grows where the loss pulls the other way, and a structure whose step
would leave the half-space in front of it is projected to zero. Here the projection only *enrols*
a structure: it decays over ``decay_steps`` steps (1: as published), and may be released.

Source: Chen et al., OTOv2, arXiv 2303.06862; formulas as in its published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decayprune.cost import Budget
from decayprune.hosts.otov2.dhspg_selection import DhspgSelector
from decayprune.hosts.otov2.directions import Variant, base_arguments
from decayprune.hosts.otov2.penalty import GUARD, PENALTIES, Penalty, saliency, strengths
from decayprune.hosts.otov2.products import Products
from decayprune.hosts.otov2.stream import Stream
from decayprune.hosts.otov2.zero_invariant_optimizer import NEVER, ZeroInvariantOptimizer
from decayprune.method.lifecycle import ACTIVE
from decayprune.method.moves import Moves
from decayprune.method.rectify import Rectify, Tournament, Verdict
from decayprune.structures.example import ExampleInputs


class DHSPG(ZeroInvariantOptimizer):
    """Trains and prunes at once (OTOv2), from scratch or from a checkpoint.

    Example::

        optimizer = DHSPG(model, inputs, lr=0.1, target_group_sparsity=0.7, epsilon=0.95,
                          start_step=1000, decay_steps=100, rectify=Rectify())
        for inputs, targets in loader:
            criterion(model(inputs), targets).backward()
            optimizer.step(); optimizer.zero_grad()
        report = optimizer.compact()

    Args:
        model: The bare module, trained in place.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        lr: Learning rate.
        variant: ``"sgd"`` (heavy ball with ``momentum``), ``"adam"`` or ``"adamw"``.
        momentum: Of SGD.
        dampening: Of SGD's momentum.
        betas: Of Adam and AdamW.
        weight_decay: None: 1e-2 for AdamW, else 0.
        lmbda: Strength of the penalty; None: 1e-3 for SGD, else 1e-2.
        lmbda_amplify: How far above the least effective strength; None: 2 for SGD, else 20.
        hat_lmbda_coeff: Largest strength in multiples of ``lmbda``; None: 10 for SGD, else 1000.
        epsilon: Half-space: a structure is caught when ``<x_new, x> < epsilon * ||x||^2``.
        target_group_sparsity: Share of the structures to prune.
        tolerance_group_sparsity: How many more than that are penalised, as a share of all.
        start_step: Optimizer steps before the partition.
        warm_up_steps: Steps before which the penalty keeps its base strength and nothing is
            caught.
        group_divisible: Keep a multiple of it in each group.
        stop_step: Step at which whatever the target still lacks is enrolled, and from which
            nothing is replaced; a tournament enrols ``extra`` more and still releases those.
            None, as published: no guarantee when the target is met.
        budget: What remains at the end, instead of ``target_group_sparsity``.
        decay_steps: Steps over which a caught structure decays; 1 is the published projection.
        rectify: When a decaying structure is released; None: never.
        slices: Shrink the ``"carriers"`` of a decaying structure or ``"all"`` its slices.
        ignored_layers: Names, globs or modules whose output widths are left alone.
        params: What to train, as for any torch optimizer; None: all parameters of the model.

    Raises:
        ValueError: The target cannot be reached, or a value is out of range.
    """

    _selector: DhspgSelector

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        lr: float,
        *,
        variant: Variant = "sgd",
        momentum: float = 0.0,
        dampening: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float | None = None,
        lmbda: float | None = None,
        lmbda_amplify: float | None = None,
        hat_lmbda_coeff: float | None = None,
        epsilon: float = 0.0,
        target_group_sparsity: float = 0.5,
        tolerance_group_sparsity: float = 0.05,
        start_step: int = 0,
        warm_up_steps: int = 0,
        group_divisible: int = 1,
        stop_step: int | None = None,
        budget: Budget | None = None,
        decay_steps: int = 1,
        rectify: Rectify | None = None,
        slices: Literal["carriers", "all"] = "carriers",
        ignored_layers: Iterable[str | nn.Module] = (),
        params: Iterable[Any] | None = None,
    ) -> None:
        stop = NEVER if stop_step is None else stop_step
        rule = None if rectify is None else rectify.verdict
        self._stream = Stream(rule, stop) if isinstance(rule, Tournament) else None
        super().__init__(
            model,
            example_inputs,
            lr,
            variant=variant,
            base=base_arguments(momentum, dampening, betas, weight_decay),
            params=params,
            ignored_layers=ignored_layers,
            group_divisible=group_divisible,
            leave_small=False,
            budget=budget,
            target=target_group_sparsity,
            decay_steps=decay_steps,
            rectify=rectify,
        )
        _check(epsilon, tolerance_group_sparsity, start_step, stop_step)
        self.penalty = _penalty(variant, lmbda, lmbda_amplify, hat_lmbda_coeff)
        self.epsilon, self.tolerance = epsilon, tolerance_group_sparsity
        self.start_step, self.warm_up_steps, self.stop_step = start_step, warm_up_steps, stop_step
        self._selector = self._selecting(stop, rule)
        self._met = False
        self._begin(
            self._selector,
            self._selector.target,
            verdict=self._stream,
            # A tournament still judges what stop_step enrols.
            last_release=stop if self._stream is None or stop == NEVER else stop + decay_steps,
            slices=slices,
        )

    def _selecting(self, stop: int, rule: Verdict | None) -> DhspgSelector:
        return DhspgSelector(
            self.structures.group_of,
            self.cost,
            budget=self.budget,
            sparsity=self.target,
            tolerance=self.tolerance,
            divisible=self.group_divisible,
            stop_step=stop,
            extra=0.0 if rule is None else rule.extra_share(self.decay_steps),
            device=next(iter(self._parameters.values())).device,
        )

    # ---------------------------------------------------------------- before the weights move

    def _look(self, step: int, direction: Mapping[str, Tensor]) -> None:
        drawn = self._selector.drawn
        self._selector.note(None, None)
        due = not drawn and step > self.start_step
        if not due and (self._met or not drawn):
            return
        rates = self._rates()
        products = self._sums.products(self._parameters, direction, rates)
        if due:
            score = saliency(products, self._sums.numel)
            # Scores of a lifecycle are lowest for what goes first.
            state = self._session.decayer.state
            self._session.decayer.state = replace(state, score=-score.to(state.score))
            self._selector.draw(score, self.lifecycle)
        self._penalise(products, step, rates)

    def _penalise(
        self, products: Products, step: int, rates: Mapping[str, tuple[float, float]]
    ) -> None:
        active = self._selector.members & (self.lifecycle.phase == ACTIVE)
        norm = products.xx.sqrt()
        warm = step >= self.warm_up_steps
        strength = strengths(products, self.penalty) if warm else self.penalty.lmbda
        share = torch.where(active & (norm > 0), strength / (norm + GUARD), 0.0)
        self._sums.shrink_(self._parameters, share, rates)
        if not warm:
            return
        # <x_new, x> needs no pass over the weights: x_new is a combination of x and d.
        along = products.xx - products.moved_xd - products.decayed_xx - share * products.moved_xx
        caught = active & ((along < self.epsilon * products.xx) | (products.xx == 0))
        nearness = along / products.xx.clamp(min=torch.finfo(norm.dtype).tiny)
        self._selector.note(caught.nonzero().flatten(), nearness)

    # ---------------------------------------------------------------- bookkeeping

    def _moved(self, moves: list[Moves]) -> None:
        self._met = self._selector.done(self.lifecycle, self.steps)

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "epsilon": self.epsilon,
            "tolerance_group_sparsity": self.tolerance,
            "start_step": self.start_step,
            "stop_step": self.stop_step,
            "penalty": list(self.penalty),
        }

    def _selection_state(self) -> dict[str, Any]:
        judged = [] if self._stream is None else list(self._stream.judged)
        return {**self._selector.state_dict(), "judged": judged}

    def _load_selection(self, own: Mapping[str, Any]) -> None:
        self._selector.load_state_dict(own)
        if self._stream is not None:
            self._stream.judged = list(own["judged"])
        self._met = self._selector.done(self.lifecycle, self.steps)


def _penalty(variant: Variant, *own: float | None) -> Penalty:
    """The variant's usual penalty, with what the user chose of it."""
    usual = zip(own, PENALTIES[variant], strict=True)
    return Penalty(*(value if mine is None else mine for mine, value in usual))


def _check(epsilon: float, tolerance: float, start: int, stop: int | None) -> None:
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon lies in [0, 1), found {epsilon!r}.")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance_group_sparsity lies in [0, 1), found {tolerance!r}.")
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError(
            f"start_step is 0 or later and stop_step comes after it; found {start} and {stop}."
        )
