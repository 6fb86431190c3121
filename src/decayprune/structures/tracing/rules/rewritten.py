"""Operators that are others in one call: written out, each part has a rule of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.rules.layers import addmm
from decayprune.structures.tracing.rules.products import left_alone


def rewritten(function: Callable[..., Any], **names: str) -> Callable[[Call], Any]:
    """The rule of an operator that computes what a function computes.

    Args:
        function: Takes what the operator takes, by its names for it.
        names: Of the operator where they are others, and what the function calls the same.
    """
    known = inspect.signature(function)

    def rule(call: Call) -> Any:
        name = getattr(call.func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or call.tracer is None or call.kwargs.get("out") is not None:
            return left_alone(call)
        given = {names.get(k, k): v for k, v in call.kwargs.items() if k != "out"}
        try:
            known.bind(*call.args, **given)
        except TypeError:  # a form of it that nobody has taught
            return left_alone(call)
        try:
            with call.tracer:
                return function(*call.args, **given)
        except NotImplementedError:  # a form that is not written out
            return left_alone(call)

    return rule


def plus_product(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    """baddbmm, addmm."""
    product = torch.matmul(mat1, mat2)
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else product + (input if beta == 1 else beta * input)


def plus_products(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    """addbmm: the products of a batch are added up."""
    product = torch.matmul(batch1, batch2).sum(0)
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else product + (input if beta == 1 else beta * input)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """bilinear: the weight is (out, in of the first, in of the second)."""
    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """The logarithm of a sum of exponentials."""
    return (input.exp() + other.exp()).log()


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """A product summed over some dimensions of both."""
    if isinstance(dims, int):
        dims = (range(a.dim() - dims, a.dim()), range(dims))
    letters = "abcdefghijklmnopqrstuvwxyz"
    of_a, of_b = list(letters[: a.dim()]), list(letters[a.dim() : a.dim() + b.dim()])
    for i, j in zip(*dims, strict=True):
        of_b[j] = of_a[i]
    result = [c for c in (*of_a, *of_b) if (c in of_a) != (c in of_b)]
    return einsum(f"{''.join(of_a)},{''.join(of_b)}->{''.join(result)}", a, b)


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Einsum as permutations, products and sums, one operand after the other."""
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise NotImplementedError("operands and lists of numbers by turns")
    names, result = _letters(equation.replace(" ", ""), operands)
    if any(len(set(name)) < len(name) for name in names):
        raise NotImplementedError("a diagonal")
    value, have = operands[0], names[0]
    for i, (other, name) in enumerate(zip(operands[1:], names[1:], strict=True), 1):
        needed = set(result).union(*names[i + 1 :])
        value, have = _pair((value, have), (other, name), needed)
    value, have = _summed(value, have, set(result))
    return value.permute([have.index(c) for c in result])


_DOTS = "αβγδεζηθ"
"""Letters of the dimensions that an ellipsis stands for."""


def _letters(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """A letter for each dimension of each operand, and of the result."""
    inputs, arrow, result = equation.partition("->")
    names = inputs.split(",")
    most = 0
    for i, (name, operand) in enumerate(zip(names, operands, strict=True)):
        if "..." in name:
            count = operand.dim() - len(name) + 3
            most = max(most, count)
            names[i] = name.replace("...", _DOTS[len(_DOTS) - count :])
    dots = _DOTS[len(_DOTS) - most :]
    if not arrow:
        plain = "".join(names)
        once = sorted(c for c in set(plain) if plain.count(c) == 1 and c.isascii())
        result = "..." + "".join(once)
    return names, result.replace("...", dots)


def _summed(value: Tensor, have: str, needed: set[str]) -> tuple[Tensor, str]:
    gone = [i for i, c in enumerate(have) if c not in needed]
    if not gone:
        return value, have
    return value.sum(gone), "".join(c for c in have if c in needed)


def _pair(
    left: tuple[Tensor, str], right: tuple[Tensor, str], needed: set[str]
) -> tuple[Tensor, str]:
    """The product of two operands, summed over what both have and nobody needs."""
    (a, in_a), (b, in_b) = left, right
    a, in_a = _summed(a, in_a, needed | set(in_b))
    b, in_b = _summed(b, in_b, needed | set(in_a))
    inner = "".join(c for c in in_a if c in in_b and c not in needed)
    batch = "".join(c for c in in_a if c in in_b and c in needed)
    rows = "".join(c for c in in_a if c not in in_b)
    columns = "".join(c for c in in_b if c not in in_a)
    if not inner:
        every = batch + rows + columns
        return _spread(a, in_a, every) * _spread(b, in_b, every), every
    sizes = {c: max(n, m) for c, n, m in _sizes(a, in_a, b, in_b)}
    y = _matrix(a, in_a, batch, rows, inner) @ _matrix(b, in_b, batch, inner, columns)
    if len(rows) != 1 or len(columns) != 1:
        y = y.reshape([sizes[c] for c in batch + rows + columns])
    return y, batch + rows + columns


def _sizes(a: Tensor, in_a: str, b: Tensor, in_b: str) -> list[tuple[str, int, int]]:
    of_a, of_b = dict(zip(in_a, a.shape, strict=True)), dict(zip(in_b, b.shape, strict=True))
    return [(c, of_a.get(c, 1), of_b.get(c, 1)) for c in {*in_a, *in_b}]


def _spread(value: Tensor, have: str, every: str) -> Tensor:
    """A tensor with a dimension for each letter, of size 1 where it has none."""
    value = value.permute([have.index(c) for c in every if c in have])
    for i, c in enumerate(every):
        if c not in have:
            value = value.unsqueeze(i)
    return value


def _matrix(value: Tensor, have: str, batch: str, rows: str, columns: str) -> Tensor:
    """A tensor as matrices: batch dimensions, one of all rows, one of all columns."""
    order = batch + rows + columns
    value = value.permute([have.index(c) for c in order])
    if len(rows) == 1 and len(columns) == 1:
        return value
    sizes = dict(zip(order, value.shape, strict=True))
    shape = [sizes[c] for c in batch]
    return value.reshape(*shape, prod(sizes[c] for c in rows), prod(sizes[c] for c in columns))


def _addmm(call: Call) -> Any:
    bias, weight = call.arg(0, "input"), call.arg(2, "mat2")
    if call.tape.is_weight(weight) and bias.dim() == 1 and call.kwargs.get("beta", 1) == 1:
        return addmm(call)
    return rewritten(plus_product)(call)


REWRITTEN = {
    "addmm": _addmm,
    "baddbmm": rewritten(plus_product, batch1="mat1", batch2="mat2"),
    "addbmm": rewritten(plus_products),
    "bilinear": rewritten(bilinear),
    "logaddexp": rewritten(logaddexp),
    "tensordot": rewritten(tensordot),
    "einsum": rewritten(einsum),
}
