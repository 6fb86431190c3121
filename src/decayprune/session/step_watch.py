"""Knowing when an optimizer really stepped, and doing something right before it does.

Whoever lives beside an optimizer is called after ``optimizer.step()``; whether that call moved the
weights (accumulation, a step that GradScaler skipped) only the optimizer's own hooks can tell.
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
        before: Method called before each of them steps.
        after: Method called once all of them have stepped.

    The watch does not keep the object behind the methods alive, so that a forgotten pruner is
    gone at once.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        before: Before,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._optimizers = list(optimizers)
        self._before = weakref.WeakMethod(before)
        self._after = None if after is None else weakref.WeakMethod(after)
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._skipped = False
        self._hooks = _register(self)
        # Hooks of a watch that is gone must not pile up on an optimizer that lives on.
        weakref.finalize(self, _remove, self._hooks)

    def taken(self) -> bool:
        """Whether a step was taken since the last call that said so."""
        if len(self._stepped) < len(self._optimizers):
            return False
        self.forget()
        return True

    def stepped(self) -> list[torch.optim.Optimizer]:
        """Those of several optimizers that have taken the step that is not complete yet."""
        if len(self._stepped) == len(self._optimizers):
            return []
        return [one for one in self._optimizers if id(one) in self._stepped]

    def called(self) -> bool:
        """Whether some of the optimizers were called since, even if one had to skip its step."""
        skipped, self._skipped = self._skipped, False
        return bool(skipped or self._stepped or self._begun)

    def forget(self) -> None:
        """Drop a step that was taken and not asked for yet."""
        self._stepped.clear()
        self._begun.clear()

    def close(self) -> None:
        """Remove the hooks."""
        _remove(self._hooks)

    def _awaiting(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Enter once the closure has made the gradients, if there is one."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._enter(optimizer)
            return None
        entered = False

        def watched() -> Any:
            nonlocal entered
            loss = closure()
            if not entered:  # it may be called again, with the weights on their way
                entered = True
                self._enter(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _enter(self, optimizer: torch.optim.Optimizer) -> None:
        if id(optimizer) in self._begun:  # the step before was never completed
            self._begun.clear()
        first = not self._begun
        self._begun.add(id(optimizer))
        if (before := self._before()) is not None:
            before(optimizer, first)

    def _leave(self, optimizer: torch.optim.Optimizer) -> None:
        if len(self._begun) == len(self._optimizers):
            self._begun.clear()
        # Under GradScaler a fused optimizer is called even where it must skip.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self._skipped = True
            return
        self._stepped.add(id(optimizer))
        after = None if self._after is None else self._after()
        if after is not None and len(self._stepped) == len(self._optimizers):
            after()


def _remove(hooks: Sequence[torch.utils.hooks.RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def grad_scale(optimizer: torch.optim.Optimizer) -> torch.Tensor | float:
    """What gradients are multiplied with before an optimizer steps (fused ones under AMP).

    A fused optimizer unscales them in place while it steps.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def _register(watch: StepWatch) -> list[torch.utils.hooks.RemovableHandle]:
    alive = weakref.ref(watch)

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self = alive()
        return None if self is None else self._awaiting(optimizer, args, kwargs)

    def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (self := alive()) is not None:
            self._leave(optimizer)

    hooks = []
    for optimizer in watch._optimizers:
        hooks.append(optimizer.register_step_pre_hook(before))
        hooks.append(optimizer.register_step_post_hook(after))
    return hooks
