"""An accelerator that is not there: tensors that say so, and count what they would cost.

A :class:`Simulated` tensor names a device of its own, keeps its numbers on the CPU, and refuses to
be mixed with CPU tensors as a GPU does. What is asked of it is counted: launches of kernels, copies
from the host, and synchronisations, at which the host waits for everything that was launched.

    with simulated():
        model = moved(model)
        ...
        with counting() as found:
            optimizer.step()
            pruner.step()
    print(found.syncs, found.copies, found.launches, found.where)

Counted is what the library does, in its hooks too, and not what the optimizer does.

A step can be recorded, as a CUDA graph does, and repeated without Python:

    graph = Graph()
    with recording(graph):
        optimizer.step()
        pruner.step()
    graph.replay()

While it is recorded nothing is written, and to wait for the device or to copy to it is refused.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import decayprune
from decayprune.method import flag
from decayprune.session import capture

DEVICE = torch.device("lazy", 0)  # torch knows the name, needs no driver, and leaves it alone

_VIEWS = """
view _unsafe_view t transpose permute detach alias select slice split split_with_sizes unsqueeze
squeeze expand as_strided narrow _reshape_alias unbind lift_fresh empty empty_like new_empty
empty_strided new_empty_strided _local_scalar_dense set_ is_same_size
"""
_WAITS = """
_local_scalar_dense nonzero masked_select _unique2 unique_consecutive bincount equal
"""
_COPIES = ("_to_copy", "copy_")


_LIBRARY = str(Path(decayprune.__file__).parent)


class Count:
    """What the library asked of the device.

    Attributes:
        syncs: Times that the host waited for the device.
        copies: Copies from the host.
        launches: Kernels launched.
        where: Who did it: ``(what, file, line) -> times``.
    """

    def __init__(self) -> None:
        self.syncs = self.copies = self.launches = 0
        self.where: Counter[tuple[str, str, int]] = Counter()

    def note(self, what: str, number: int = 1) -> None:
        """Count something, if the library did it."""
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(_LIBRARY):
            frame = frame.f_back
        if frame is not None:
            setattr(self, what, getattr(self, what) + number)
            file = frame.f_code.co_filename[len(_LIBRARY) + 1 :]
            self.where[what, file, frame.f_lineno] += number

    @property
    def all(self) -> tuple[int, int, int]:
        """Syncs, copies and launches."""
        return self.syncs, self.copies, self.launches


_counts: list[Count] = []


def _note(what: str, number: int = 1) -> None:
    if _graphs and what != "launches":
        raise RuntimeError("operation not permitted when stream is capturing")
    for count in _counts:
        count.note(what, number)


@contextmanager
def counting() -> Iterator[Count]:
    """Count what is asked of the device in the block."""
    count = Count()
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)


class Graph:
    """What was asked of the device, with the very tensors that it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def replay(self) -> None:
        """Do it again; what came out goes to where it came out before."""
        for func, args, kwargs, found in self.asked:
            again = func(*args, **kwargs)
            for old, new in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and not _writes(func):
                    old.copy_(new)

    def do(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note what is asked for. What would be written is not, and what would be new is made."""
        if _writes(func):
            self.asked.append((func, args, kwargs, None))
            return None
        found = func(*args, **kwargs)
        if func._schema.name.partition("::")[2] not in _VIEWS.split():
            self.asked.append((func, args, kwargs, found))
        return found


_graphs: list[Graph] = []


@contextmanager
def recording(graph: Graph) -> Iterator[None]:
    """Have what is asked of the device in the block recorded, and nothing of it done."""
    _graphs.append(graph)
    try:
        yield
    finally:
        _graphs.remove(graph)


def _writes(func: Any) -> bool:
    """Whether an operator writes to what it is given."""
    arguments = func._schema.arguments
    return any(a.alias_info is not None and a.alias_info.is_write for a in arguments)


class Simulated(Tensor):
    """A tensor of the simulated device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        """Wrap a CPU tensor."""
        made: Simulated = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.inner})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__get__:
            return Simulated(args[0].inner.detach())
        if func == Tensor.data.__set__:
            with torch._C.DisableTorchFunctionSubclass():
                func(*args)
            args[0].inner = _inner(args[1])
            return None
        if func is Tensor.tolist:
            _note("syncs")
            return args[0].inner.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Has the factories make tensors of the device when they are asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = tree_flatten((args, kwargs))[0]
        if _ours(kwargs.get("device")) or any(isinstance(item, Simulated) for item in flat):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what the device was asked for."""
    name = func._schema.name.partition("::")[2]
    flat = tree_flatten((args, kwargs))[0]
    ours = [item for item in flat if isinstance(item, Simulated)]
    others = [item for item in flat if isinstance(item, Tensor) and not isinstance(item, Simulated)]
    device = kwargs.get("device")
    stays = _ours(device) if device is not None else bool(ours)
    if name in _COPIES:
        stays = _count_copy(name, args, kwargs, stays)
    else:
        _refuse_mixed(name, args, ours, others)
        _count(name, args, kwargs)
    plain = dict(kwargs)
    if device is not None:
        plain["device"] = torch.device("cpu")
    plain.pop("pin_memory", None)
    there = tree_map(_inner, args)
    if name in ("index_add", "index_add_"):
        there = _as_threads_arrive(*there)
    plain = tree_map(_inner, plain)
    found = _graphs[-1].do(func, there, plain) if _graphs else func(*there, **plain)
    if name == "copy_" or (name.endswith("_") and not name.startswith("_foreach")):
        return args[0]
    return tree_map(_outer, found) if stays else found


def _as_threads_arrive(total: Tensor, dim: int, index: Tensor, values: Tensor) -> tuple[Any, ...]:
    """The same additions in an order of their own, as atomic ones of a GPU are."""
    order = torch.randperm(index.numel(), generator=_arrivals)
    return total, dim, index[order], values.index_select(dim, order)


_arrivals = torch.Generator().manual_seed(0)


def _inner(item: Any) -> Any:
    return item.inner if isinstance(item, Simulated) else item


def _outer(item: Any) -> Any:
    plain = isinstance(item, Tensor) and not isinstance(item, Simulated)
    return Simulated(item) if plain else item


def _count_copy(name: str, args: Any, kwargs: dict[str, Any], stays: bool) -> bool:
    """Count a copy by its direction. Returns whether the result is on the device."""
    source = isinstance(args[0 if name == "_to_copy" else 1], Simulated)
    target = stays if name == "_to_copy" else isinstance(args[0], Simulated)
    later = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
    if source and target:
        _note("launches")
    elif target:
        _note("copies")
        if not later:  # the host waits until all that was launched before is over, and the copy
            _note("syncs")
    elif source and not later:
        _note("syncs")
    return target


def _refuse_mixed(name: str, args: Any, ours: list[Tensor], others: list[Tensor]) -> None:
    """As on a GPU: only numbers and index tensors may come from the host."""
    strange = [item for item in others if item.dim() > 0]
    if name.startswith(("index", "_index_put", "_unsafe_index")) and isinstance(args[1], list):
        held = [item for item in args[1] if item is not None]
        strange = [item for item in strange if not any(item is one for one in held)]
        for item in held:
            if not isinstance(item, Simulated):
                _note("copies")
            if item.dtype is torch.bool:
                _note("syncs")
    if ours and strange:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, found {DEVICE} and cpu, in {name}"
        )


def _count(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name in _WAITS.split() or (
        name == "repeat_interleave" and kwargs.get("output_size") is None
    ):
        _note("syncs")
    if name not in _VIEWS.split():
        number = 1
        if name.startswith("_foreach"):
            number = _foreach_launches([item for item in args if isinstance(item, (list, tuple))])
        elif name == "cat":
            number = -(-len(args[0]) // 128)  # so many tensors at once
        _note("launches", number)


def _foreach_launches(lists: Sequence[Sequence[Any]]) -> int:
    """Of torch's multi-tensor kernels: what fits into the arguments of one, filled greedily."""
    most = [110, 64, 48, 36][min(len(lists), 4) - 1]
    launches = tensors = blocks = 0
    for item in lists[0]:
        tensors += 1
        chunks = max(1, -(-item.numel() // 65536))
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == 320 or (tensors == most and last):
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + bool(blocks)


@contextmanager
def simulated() -> Iterator[None]:
    """Let the device exist in the block."""
    tensor = torch.tensor

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made_here = tensor(data, *args, **kwargs)
        return made_here.to(device) if _ours(device) else made_here

    empty = torch.empty

    def pageable(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs)

    device = mock.Mock()  # copies arrive at once, and its events say so
    device.device_count.return_value = 0  # none that has random numbers of its own
    device.is_current_stream_capturing = lambda: bool(_graphs)
    with (
        _Factories(),
        mock.patch.object(torch, "tensor", made),
        mock.patch.object(torch, "empty", pageable),
        mock.patch.object(torch, "get_device_module", return_value=device),
        mock.patch.object(flag, "ASYNCHRONOUS", {DEVICE.type}),
        mock.patch.object(capture, "_RECORD", {DEVICE.type}),
    ):
        yield


def moved(model: nn.Module) -> nn.Module:
    """A model with all parameters and buffers on the device, in place; shared ones stay shared."""
    seen: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = nn.Parameter(Simulated(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = seen.setdefault(id(parameter), new)
                if parameter.grad is not None:
                    module._parameters[name].grad = Simulated(parameter.grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Simulated(buffer)
    return model
