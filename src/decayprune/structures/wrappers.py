"""Wrappers around a model that know its shapes: who they are, and what to write instead.

Data parallelism and compilation put a module around the user's own. A pruner names layers as the
bare module does, and its cut changes shapes that a wrapper has recorded, so both the moment of
building a pruner and the moment of cutting ask here first.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from decayprune.structures.ranks import several

_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}


def check_bare(model: nn.Module) -> None:
    """Raise if a model is wrapped, or is made of wrapped parts.

    Raises:
        ValueError: It is; says what to pass instead.
    """
    check_whole(model)
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        where = _where(name)
        if kinds & {"DistributedDataParallel", "DataParallel"}:
            raise ValueError(
                f"{where} is wrapped in {type(module).__name__}. Build the pruner from the bare "
                "module, before wrapping it: dp.DecayPruner(model, ...) (or pass the wrapper's "
                ".module)."
            )
        if "OptimizedModule" in kinds:
            raise ValueError(
                f"{where} is compiled. Build the pruner from the module that was given to "
                "torch.compile: dp.DecayPruner(model, ...); compiled = torch.compile(model)."
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{where} is compiled in place. Build the pruner first and call .compile() after."
            )


def check_whole(model: nn.Module) -> None:
    """Raise if layers of a model are divided among processes (FSDP, tensor parallelism).

    Raises:
        ValueError: They are; says what to do instead.
    """
    for name, module in model.named_modules():
        by_fsdp = not _SHARDED.isdisjoint(kind.__name__ for kind in type(module).__mro__)
        own = module._parameters.values()
        if by_fsdp or any(type(parameter).__name__ == "DTensor" for parameter in own):
            raise ValueError(
                f"{_where(name)} is sharded{' by FSDP' if by_fsdp else ''}, where no process holds "
                "a whole layer to prune. Prune under DistributedDataParallel or on one device, and "
                "shard the model after compact(): docs/integrations/fsdp.md shows both halves."
            )


def _where(name: str) -> str:
    return f"The part {name!r} of the model" if name else "The model"


def check_unwrapped(model: nn.Module) -> None:
    """Raise if a living DistributedDataParallel holds this model: it keeps the shapes of old.

    Raises:
        RuntimeError: There is one; the message has the two lines to write.
    """
    if is_wrapped(model):
        raise RuntimeError(
            "A DistributedDataParallel still wraps this model, and its buckets have the sizes "
            "before the cut. Delete it (and what else holds it), compact the module on every rank, "
            "and wrap again:\n"
            "    del parallel; pruner.compact()\n"
            "    parallel = DistributedDataParallel(model)"
        )


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Shapes may change inside: a DistributedDataParallel lets its model go, and is made for them.

    For loops that hold a wrapper where nobody can replace it. It stays the same object, with its
    settings and communication hooks; torch makes its reducer anew as it does for an unpickled one.
    To be entered by all ranks, between a step of the optimizer and the next backward pass.

    Args:
        model: The bare module; nothing happens if it is not wrapped.

    Raises:
        RuntimeError: The wrapper has a process group of its own, which torch cannot make anew.
    """
    if not is_wrapped(model):
        yield
        return
    wrapper = wrapper_of(model)
    assert wrapper is not None
    state = wrapper.__getstate__()  # type: ignore[no-untyped-call]
    module, hooks = wrapper.module, list(wrapper._comm_hooks)
    del wrapper.module, wrapper.reducer, wrapper.logger  # the last two hang hooks on parameters
    try:
        yield
    finally:
        wrapper.module = module
        wrapper.__setstate__(state)  # type: ignore[no-untyped-call]
        wrapper._comm_hooks.clear()
        for hook, its in hooks:
            wrapper.register_comm_hook(its, hook)


def is_wrapped(model: nn.Module) -> bool:
    """Whether a living DistributedDataParallel holds this model."""
    if wrapper_of(model) is None:
        return False
    gc.collect()  # a wrapper that was deleted may hang in a cycle
    return wrapper_of(model) is not None


def wrapper_of(model: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    """The DistributedDataParallel that holds this model; a deleted one may count, too."""
    if not several():
        return None
    parameters = {id(parameter) for parameter in model.parameters()}
    # type(), not isinstance(): the latter asks every object for its __class__, and lazy ones act.
    wrappers: list[nn.parallel.DistributedDataParallel] = [
        item
        for item in gc.get_objects()
        if issubclass(type(item), nn.parallel.DistributedDataParallel)
    ]
    for wrapper in wrappers:
        if any(id(parameter) in parameters for parameter in wrapper.parameters()):
            return wrapper
    return None
