"""Choices of order, made once and repeated: sorting, top-k, suppression, thresholds.

A model that sorts its outputs swaps two of them for a rounding error, and everything behind the
sort with them. Two runs are comparable when both make the same choices: an :class:`Order` notes
those of the first run, and has the second one follow them. The values that are put into that order
are the second run's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Choice = tuple[str, tuple[Tensor, ...]]

_VALUES_AND_INDICES = {"topk", "sort", "kthvalue", "median", "mode", "max", "min", "cummax"}
_INDICES = {"argsort", "argmax", "argmin", "nonzero", "nms", "unique_dim", "_unique2"}
_BY_MASK = {"index", "masked_select"}


class Order:
    """The choices of order of one run.

    Attributes:
        followed: Choices that a later run has taken over.
    """

    def __init__(self) -> None:
        self._choices: list[Choice] = []
        self.followed = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the choices that are made from here on."""
        self._choices.clear()
        with _Listener(self._note):
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Have the same choices made again, as long as the calls are the same."""
        if not self._choices:  # a listener hears every call, and few models choose
            yield
            return
        waiting = iter(self._choices)

        def follow(name: str, args: Sequence[Any], run: Callable[[], Any]) -> Any:
            result = run()
            then, indices = next(waiting, ("", ()))
            again = _repeated(name, args, result, indices) if then == name else None
            if again is None:
                return result
            self.followed += 1
            return again

        with _Listener(follow):
            yield

    def _note(self, name: str, args: Sequence[Any], run: Callable[[], Any]) -> Any:
        result = run()
        self._choices.append((name, _chosen(name, args, result)))
        return result


def _chosen(name: str, args: Sequence[Any], result: Any) -> tuple[Tensor, ...]:
    """What was chosen, apart from the values."""
    if name in _BY_MASK:
        return tuple(mask.clone() for mask in _masks(args))
    if name in _INDICES:
        return tuple(t.clone() for t in (result if isinstance(result, tuple) else (result,)))
    return (result[1].clone(),)


def _masks(args: Sequence[Any]) -> list[Tensor]:
    given = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
    return [t for t in given if isinstance(t, Tensor) and t.dtype == torch.bool]


def _repeated(name: str, args: Sequence[Any], result: Any, chosen: tuple[Tensor, ...]) -> Any:
    """The result under an earlier choice; None where it does not fit."""
    if name in _INDICES:
        fits = [t.dtype for t in chosen] == [
            t.dtype for t in (result if isinstance(result, tuple) else (result,))
        ]
        return (chosen if isinstance(result, tuple) else chosen[0]) if fits else None
    if name in _BY_MASK:
        masks = iter(chosen)
        old = [m.shape for m in chosen]
        if old != [m.shape for m in _masks(args)]:
            return None
        if name == "masked_select":
            return args[0][chosen[0]]
        index = tuple(
            slice(None) if t is None else next(masks) if t.dtype == torch.bool else t
            for t in args[1]
        )
        return args[0][index]
    values, indices = result
    if indices.shape != chosen[0].shape or not args[0].dim():
        return None
    return _values(name, args, chosen[0], values.shape), chosen[0]


def _values(name: str, args: Sequence[Any], indices: Tensor, shape: torch.Size) -> Tensor:
    """The values at the places chosen along the dimension that was reduced or sorted."""
    source, rest = args[0], [a for a in args[1:] if not isinstance(a, bool)]
    at = {"topk": 1, "kthvalue": 1}.get(name, 0)
    dim = int(rest[at]) if len(rest) > at else -1
    dim %= source.dim()
    flat = indices if indices.dim() == source.dim() else indices.unsqueeze(dim)
    values: Tensor = source.gather(dim, flat).view(shape)
    return values


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call,unused-ignore]
    """Hands the calls that choose an order to a function."""

    def __init__(self, heard: Callable[[str, Sequence[Any], Callable[[], Any]], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call,unused-ignore]
        self._heard = heard

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]

        def run() -> Any:
            return func(*args, **kwargs)

        two = name in _VALUES_AND_INDICES and len(func._schema.returns) == 2
        if two or name in _INDICES or (name in _BY_MASK and bool(_masks(args))):
            return self._heard(name, _in_order(func, args, kwargs), run)
        return run()


def _in_order(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Arguments by position, also those that were given by name."""
    names = [argument.name for argument in func._schema.arguments]
    given = [*args, *(kwargs[n] for n in names[len(args) :] if n in kwargs)]
    return [a for n, a in zip(names, given, strict=False) if n != "stable"]
