"""The batches that a model is trained on, kept as they pass."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from decayprune.compensation.batches import inputs_of
from decayprune.compensation.kept import KeptBatches
from decayprune.structures.example import ExampleInputs


class TrainingBatches(KeptBatches):
    """The inputs of the last forward passes before some steps, without labels, on the CPU.

    Args:
        model: Called by the user's loop; a hook on it is there until the last of the steps.
        number: How many are kept, and of how many steps at most.
        example_inputs: One batch as the model takes it.
        rounds: The steps: those at which rounds begin, which count as well.
        step: The step that is being taken.
    """

    def __init__(
        self,
        model: nn.Module,
        number: int,
        example_inputs: ExampleInputs,
        *,
        rounds: Iterable[int],
        step: Callable[[], int],
    ) -> None:
        super().__init__((), rounds=rounds, step=step, limit=number)
        self._model, self._example, self._number = model, example_inputs, number
        self._called, self._hook = False, self._watch()

    def _watch(self) -> RemovableHandle:
        hook = _Hook(weakref.ref(self))  # one that a forgotten pruner has left does nothing
        return self._model.register_forward_pre_hook(hook, with_kwargs=True)

    def note(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called."""
        if not model.training or not torch.is_grad_enabled():
            return
        self._called = True
        if self.near(self._step()):
            called = _as_example(model, args, kwargs, self._example)
            self.kept.append(tree_map(_plain, called))

    def near(self, step: int) -> bool:
        """Whether what passes at a step is kept."""
        return any(one - self._number < step <= one for one in self._rounds)

    def due(self) -> bool:
        """Whether a round begins that has not learned from what was kept.

        Raises:
            RuntimeError: The model is being trained without being called.
        """
        if self._rounds and not self._called:
            raise RuntimeError(
                "calibrate is a number of batches to be kept as the model is trained on them, and "
                "the optimizer has stepped without a call of the model in training mode (it is "
                "compiled, or in evaluation mode, or its parts are called one by one). Pass the "
                "data itself: calibrate=loader, your training loader."
            )
        return super().due()

    def close(self) -> None:
        """Let go of the model, and of what was kept."""
        super().close()
        self._hook.remove()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        if self._rounds:
            self._hook = self._watch()


class _Hook:
    """Tells of calls; that of a copy of the model, or of one from a file, tells nobody."""

    def __init__(self, watching: weakref.ref[TrainingBatches] | None = None) -> None:
        self._watching = watching

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():  # a break in the graph would outlive the hook
            return
        watching = None if self._watching is None else self._watching()
        if watching is not None:
            watching.note(model, args, kwargs)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _as_example(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], example: ExampleInputs
) -> ExampleInputs:
    """The inputs of a call in a form that example inputs have, without labels."""
    if kwargs or isinstance(example, Mapping):
        named = inspect.signature(model.forward).bind_partial(*args).arguments
        return inputs_of({**named, **kwargs}, example)
    return inputs_of(args, example)


def _plain(value: Any) -> Any:
    """A copy of a tensor, or a plain value: what can be saved along."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        "calibrate is a number of batches to be kept as the model is trained on them, and it is "
        f"called with a {type(value).__name__}, where tensors and plain values can be kept. Pass "
        "the data itself: calibrate=loader, your training loader."
    )
