"""Example inputs from words: ``1,3,224,224``, ``1,6:long``, ``mask=1,6:bool``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FORMS = (
    "sizes such as 1,3,224,224, with :long behind them for whole numbers such as token ids, and "
    "NAME= before them for an argument of that name"
)
_KINDS = {
    "float": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "long": torch.int64,
    "int": torch.int32,
    "bool": torch.bool,
}


def inputs(words: Sequence[str]) -> Any:
    """The arguments of a forward pass that some ``--input`` describe.

    Floats are drawn from a normal distribution, always the same; whole numbers are 0 and truths
    true, which are in range whatever they mean.

    Args:
        words: One or more; all with a name, or none.

    Returns:
        A tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ValueError: One is of another form, or only some have a name.
    """
    generator = torch.Generator().manual_seed(0)
    named = [word.partition("=") if "=" in word else ("", "", word) for word in words]
    found = [(name, _tensor(sizes, generator)) for name, _, sizes in named]
    names = [name for name, _ in found]
    if any(names):
        if not all(name.isidentifier() for name in names) or len(set(names)) < len(names):
            raise ValueError(
                f"--input expects a NAME= of its own before every input, or none at all; found "
                f"{', '.join(words)}."
            )
        return dict(found)
    values = tuple(value for _, value in found)
    return values if len(values) > 1 else values[0]


def _tensor(word: str, generator: torch.Generator) -> Tensor:
    text, _, kind = word.partition(":")
    try:
        sizes = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--input expects {_FORMS}; found {word!r}.")
    if kind and kind not in _KINDS:
        raise ValueError(
            f"--input expects one of {', '.join(_KINDS)} behind the colon; found {kind!r}."
        )
    dtype = _KINDS[kind or "float"]
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    return (
        torch.ones(sizes, dtype=dtype) if dtype == torch.bool else torch.zeros(sizes, dtype=dtype)
    )
