"""Operators written out as others compute the same, and their parts keep what they know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from decayprune.structures.tracing.rules.rewritten import (
    bilinear,
    einsum,
    logaddexp,
    plus_product,
    plus_products,
    tensordot,
)
from ruled import groups, reason

SIZES = dict(zip("abcdeij", (2, 3, 4, 5, 2, 3, 4), strict=True))


def operand(letters: str) -> torch.Tensor:
    return torch.randn([SIZES[c] for c in letters], dtype=torch.float64)


@pytest.mark.parametrize(
    "equation",
    [
        "ab,bc->ac",
        "ab,bc",
        "ab,ab->a",
        "ab,cd->abcd",
        "a,a->",
        "ab->ba",
        "ab->b",
        "ab",
        "abc,abd->acd",
        "abcd,abed->abce",
        "abc,cd,de->abe",
        "ab,bc,a->c",
        "abi,bcj->ijc",
        "a b c, c d -> a d b",
        "abcd,cde->abe",
    ],
)
def test_einsum_is_written_out(equation: str) -> None:
    inputs = equation.replace(" ", "").partition("->")[0].split(",")
    operands = [operand(letters) for letters in inputs]
    expected = torch.einsum(equation, *operands)
    assert torch.allclose(einsum(equation, *operands), expected, 1e-12, 1e-12)
    assert torch.allclose(einsum(equation, operands), expected, 1e-12, 1e-12)


@pytest.mark.parametrize(
    ("equation", "letters"),
    [
        ("...a,ab->...b", ("cda", "ab")),
        ("...ab,...bc->...ac", ("dab", "dbc")),
        ("i...,j...->ij...", ("iab", "jab")),
        ("...a,ab", ("da", "ab")),
    ],
)
def test_an_ellipsis_stands_for_the_rest(equation: str, letters: tuple[str, str]) -> None:
    operands = [operand(name) for name in letters]
    found = einsum(equation, *operands)
    assert torch.allclose(found, torch.einsum(equation, *operands), 1e-12, 1e-12)


@pytest.mark.parametrize("beta", [0, 1, 0.5])
def test_products_that_are_added(beta: float) -> None:
    x, a, b = operand("abd"), operand("abc"), operand("acd")
    expected = torch.baddbmm(x, a, b, beta=beta, alpha=2)
    assert torch.allclose(plus_product(x, a, b, beta=beta, alpha=2), expected)
    expected = torch.addbmm(x[0], a, b, beta=beta, alpha=2)
    assert torch.allclose(plus_products(x[0], a, b, beta=beta, alpha=2), expected)


def test_bilinear_tensordot_and_logaddexp() -> None:
    x, y, weight, bias = operand("ab"), operand("ac"), operand("dbc"), operand("d")
    assert torch.allclose(bilinear(x, y, weight, bias), F.bilinear(x, y, weight, bias))
    a, b = operand("abc"), operand("cbd")
    dims = ([1, 2], [1, 0])
    assert torch.allclose(tensordot(a, b, dims), torch.tensordot(a, b, dims))
    assert torch.allclose(tensordot(a, b[:, 0], 1), torch.tensordot(a, b[:, 0], 1))
    assert torch.allclose(logaddexp(a, a + 1), torch.logaddexp(a, a + 1))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: torch.einsum("bnc,bmc,bmd->bnd", x, x, x),
        lambda x: torch.einsum("bnc,bnc->bn", x, x)[..., None] * x,
        lambda x: torch.baddbmm(x, x @ x.mT, x, beta=2),
        lambda x: torch.baddbmm(input=x, batch1=x @ x.mT, batch2=x, beta=0.5, alpha=2),
        lambda x: torch.addmm(input=x[0], mat1=x[0] @ x[0].mT, mat2=x[0])[None],
        lambda x: torch.addbmm(input=x[0], batch1=x @ x.mT, batch2=x)[None],
        lambda x: torch.logaddexp(input=x, other=x),
        lambda x: torch.tensordot(a=torch.ones(3, 5).double(), b=x, dims=([1], [1])).transpose(
            0, 1
        ),
        lambda x: torch.logaddexp(x, x),
        lambda x: torch.tensordot(torch.ones(3, 5).double(), x, ([1], [1])).transpose(0, 1),
    ],
)
def test_channels_of_what_is_written_out_are_free(between) -> None:
    assert groups(between, shape=(2, 5, 4)) == [(6, 1)]


def test_bilinear_is_taken_by_its_own_names() -> None:
    weight, ones = torch.randn(5, 4, 2).double(), torch.ones(2, 2).double()

    def between(x: torch.Tensor) -> torch.Tensor:
        looked = F.bilinear(input1=x[:, :4].relu(), input2=ones, weight=weight)
        return x * looked.sum(1, keepdim=True)

    assert reason(between, shape=(2, 4)) != "unknown operator `bilinear`"


def test_a_form_that_nobody_has_taught_is_named_and_does_not_end_the_tracing() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(1, x, 1, x @ x.mT, x)  # scales by position, as of old

    with pytest.warns(UserWarning, match="deprecated"):
        assert reason(between, shape=(2, 5, 4)) == "unknown operator `baddbmm`"


def test_what_is_not_written_out_is_named() -> None:
    def between(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ii->i", x) * x

    assert reason(between, shape=(6, 4)) == "unknown operator `einsum`"
