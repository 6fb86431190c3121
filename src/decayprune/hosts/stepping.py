"""Knowing when an optimizer really stepped, and doing something right before it does.

A host that lives beside an optimizer is called after ``optimizer.step()``; whether that call moved
the weights (accumulation, a step that GradScaler skipped) only the optimizer's own hooks can tell.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

Before = Callable[[torch.optim.Optimizer, bool], None]
"""Called before an optimizer steps, with whether it is the first of several to do so."""


class StepWatch:
    """Counts steps that happened.

    Args:
        optimizers: All of them step once per step.
        before: Called before each of them steps.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], before: Before) -> None:
        self._optimizers, self._before = list(optimizers), before
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._scale = 1.0
        self._hooks = _register(self)

    def taken(self) -> float | None:
        """What the gradients are multiplied with, if a step was taken since the last call."""
        if len(self._stepped) < len(self._optimizers):
            return None
        self._stepped.clear()
        return self._scale

    def forget(self) -> None:
        """Drop a step that was taken and not asked for yet."""
        self._stepped.clear()
        self._begun.clear()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, optimizer: torch.optim.Optimizer) -> None:
        first = not self._begun
        self._begun.add(id(optimizer))
        self._before(optimizer, first)

    def _leave(self, optimizer: torch.optim.Optimizer) -> None:
        # Under GradScaler a fused optimizer is called even where it must skip, and its gradients
        # are still scaled (the scaler hands it both as attributes).
        found_inf = getattr(optimizer, "found_inf", None)
        if len(self._begun) == len(self._optimizers):
            self._begun.clear()
        if found_inf is not None and bool(found_inf):
            return
        self._scale = grad_scale(optimizer)
        self._stepped.add(id(optimizer))


def grad_scale(optimizer: torch.optim.Optimizer) -> float:
    """What the gradients that an optimizer steps on are multiplied with (fused ones under AMP)."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _register(watch: StepWatch) -> list[torch.utils.hooks.RemovableHandle]:
    # The hooks must not keep a forgotten host alive, or its model could never be pruned again.
    alive = weakref.ref(watch)

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (self := alive()) is not None:
            self._enter(optimizer)

    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (self := alive()) is not None:
            self._leave(optimizer)

    hooks = []
    for optimizer in watch._optimizers:
        hooks.append(optimizer.register_step_pre_hook(before))
        hooks.append(optimizer.register_step_post_hook(after))
    return hooks
