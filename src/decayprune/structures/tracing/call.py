"""One intercepted call of a torch function, and the name its rule is found under."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from decayprune.structures.tracing.shapes import shape_of_result
from decayprune.structures.tracing.tape import Tape

_ALIASES = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "floordiv": "div",
    "floor_divide": "div",
    "rtruediv": "reciprocal",
    "rdiv": "reciprocal",
    "rfloordiv": "reciprocal",
    "rpow": "reciprocal",
    "multiply": "mul",
    "subtract": "sub",
    "invert": "neg",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "concat": "cat",
    "concatenate": "cat",
}
_REFLECTED = ("add", "sub", "mul", "div", "pow", "matmul", "and", "or", "xor")


@dataclass(frozen=True, eq=False)
class Call:
    """A call that a rule has to explain."""

    tape: Tape
    func: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tracer: Any = None
    """Inside it, what a rule calls is traced in turn."""

    def run(self) -> Any:
        """The call itself."""
        if self.tape.shapes_only:
            found = shape_of_result(self.name, self.func, self.args, self.kwargs)
            if found is not None:
                return found
        return self.func(*self.args, **self.kwargs)

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, given by position or by name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments, also inside lists and tuples."""
        return self._tensors

    @cached_property
    def _tensors(self) -> list[Tensor]:
        return list(tensors_in((self.args, self.kwargs)))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def in_words(value: Any) -> str:
    """Shape, type and device of every tensor in it, for a message; or that there is none."""
    found = (f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in tensors_in(value))
    return ", ".join(found) or "no tensor"


@lru_cache(maxsize=1024)
def canonical(func: Callable[..., Any]) -> str:
    """The name of an operator, the same for function, method, operator sign and in-place form.

    Examples: ``torch.add``, ``Tensor.add_``, ``x + y``, ``2 + y`` and ``x += y`` are all ``add``;
    reading the attribute ``x.shape`` is ``get:shape``.
    """
    name = getattr(func, "__name__", None) or str(func)
    if name == "__get__":
        return f"get:{getattr(getattr(func, '__self__', None), '__name__', '?')}"
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        for prefix in ("r", "i"):
            if (
                name not in _ALIASES
                and name[:1] == prefix
                and _ALIASES.get(name[1:], name[1:]) in _REFLECTED
            ):
                name = name[1:]
                break
    name = name.strip("_")
    return _ALIASES.get(name, name)
