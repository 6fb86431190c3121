"""Running a model on its example inputs without leaving a trace on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

_AUTOCAST = [d for d in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(d)]

ExampleInputs = Any
"""A tensor (the only argument), a tuple (positional) or a dict (keyword arguments)."""


def arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call.

    Raises:
        TypeError: Neither a tensor, nor a tuple or list, nor a mapping.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs is a tensor, a tuple of positional arguments, or a dict of keyword "
        f"arguments of the model's forward(); found {type(example_inputs).__name__}. Pass one "
        "batch as the model takes it."
    )


@contextmanager
def quiet(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, plain arithmetic; flags and random state are put back.

    Args:
        model: Left as it was.
        training: Training mode instead, in which normalisers still keep their statistics: a batch
            of one is enough then. What else it does to buffers (a power method) is undone.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if training else []
    model.train(training)
    for module, _ in flags:
        if module.training and isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    try:
        with plain_arithmetic(), torch.no_grad(), random_state_kept(model):
            yield
    finally:
        for module, was in flags:
            if module.training is not was:
                module.training = was
        for buffer, old in buffers:
            buffer.data.copy_(old)


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """No autocast, whose cache of weights outlives a cut, no inference mode, and no TF32.

    TF32 rounds to ten bits, and what a cut changes in the order of a sum then shows in the fourth
    digit: nothing could be told from a mistake.
    """
    with ExitStack() as stack:
        stack.enter_context(_WithoutAutocast())
        stack.enter_context(torch.inference_mode(False))  # turns gradients on, too
        for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
            stack.enter_context(_without_tf32(backend))
        yield


class _WithoutAutocast(TorchFunctionMode):
    """Leaves autocast, also where ``forward()`` enters it (decorated by a trainer, for one)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        at_work = [device for device in _AUTOCAST if torch.is_autocast_enabled(device)]
        if not at_work:
            return func(*args, **(kwargs or {}))
        with ExitStack() as stack:
            for device in at_work:
                stack.enter_context(torch.autocast(device, enabled=False))
            return func(*args, **(kwargs or {}))


@contextmanager
def _without_tf32(backend: Any) -> Iterator[None]:
    try:
        allowed = backend.allow_tf32
    except RuntimeError:  # set in torch's newer way, which does not go with this one
        yield
        return
    backend.allow_tf32 = False
    try:
        yield
    finally:
        backend.allow_tf32 = allowed


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Put the random state of the CPU and of the model's devices back."""
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        yield


def outputs(
    model: nn.Module, example_inputs: ExampleInputs, *, training: bool = False
) -> list[Tensor]:
    """Every floating-point tensor the model returns, copied.

    Args:
        model: Run in evaluation mode.
        example_inputs: What to run it on.
        training: Run it in training mode instead.
    """
    return outputs_and_draws(model, example_inputs, training=training)[0]


def outputs_and_draws(
    model: nn.Module, example_inputs: ExampleInputs, *, training: bool = False
) -> tuple[list[Tensor], bool]:
    """The same as :func:`outputs`, and whether the model drew random numbers.

    Args:
        model: Run in evaluation mode.
        example_inputs: What to run it on.
        training: Run it in training mode instead.
    """
    args, kwargs = arguments(example_inputs)
    with quiet(model, training=training):
        before = _random_states(model)
        result = model(*args, **kwargs)
        after = _random_states(model)
        drew = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        values = [value.clone() for value in returned(result) if value.is_floating_point()]
        return values, drew


def returned(result: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returns: tuples, dicts, dataclasses, plain objects.

    A key/value cache is left out. It is no result but a memory of the model, which alone reads it
    at the next token, with whatever heads it has by then.

    Args:
        result: What ``forward()`` returned.
    """
    yield from _returned(result, set())


def _returned(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or _is_cache(value):
        return
    seen.add(id(value))
    held: Iterable[Any] = ()
    if isinstance(value, Mapping):
        held = [item for key, item in value.items() if key not in _CACHES]
    elif isinstance(value, (tuple, list, set)):
        held = value
    elif not isinstance(value, (nn.Module, type, FunctionType)):
        leaves = tree_flatten(value)[0]  # what torch's tree utilities know, or else its attributes
        held = getattr(value, "__dict__", {}).values() if leaves == [value] else leaves
    for item in held:
        yield from _returned(item, seen)


_CACHES = ("past_key_values", "cache_params", "encoder_last_hidden_state")
"""Fields of outputs of transformers that hold a cache, in whatever form.

What an encoder made is one, too: generate() hands it back to the decoder for each token.
"""


def _is_cache(value: Any) -> bool:
    return any(
        base.__name__.endswith("Cache") and base.__module__.partition(".")[0] == "transformers"
        for base in type(value).__mro__
    )


def batch_size(example_inputs: ExampleInputs) -> int:
    """How many examples the inputs hold: images of a list, or else the first size of a tensor.

    Args:
        example_inputs: As a model takes them.
    """
    args, kwargs = arguments(example_inputs)
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)) and value and all(_is_image(item) for item in value):
            return len(value)
        for tensor in tree_flatten(value)[0]:
            if isinstance(tensor, Tensor) and tensor.dim():
                return tensor.shape[0]
    return 1


def refusal(error: Exception) -> str:
    """What a model said to inputs it does not take, for the middle of a sentence.

    Args:
        error: Whatever its ``forward()`` raised.
    """
    return f"{type(error).__name__}: {str(error).strip().rstrip('.')}"


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3


def _random_states(model: nn.Module) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, _cuda_devices(model))]


def _cuda_devices(model: nn.Module) -> list[int]:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # nothing lies there
        return []
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
