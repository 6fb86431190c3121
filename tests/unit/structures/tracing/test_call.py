"""One name for every way to write an operator, and arguments however they are given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.structures.tracing.call import Call, canonical, in_words, tensors_in
from decayprune.structures.tracing.tape import Tape


@pytest.mark.parametrize(
    ("name", "functions"),
    [
        ("add", [torch.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__]),
        ("sub", [torch.sub, torch.subtract, Tensor.__rsub__]),
        ("mul", [torch.multiply, Tensor.__rmul__, Tensor.__imul__]),
        ("div", [torch.true_divide, Tensor.__truediv__, Tensor.floor_divide_]),
        # 2 / x is no x / 2: nothing scales its result
        ("reciprocal", [Tensor.__rtruediv__, Tensor.__rpow__, torch.reciprocal]),
        ("and", [Tensor.__and__, Tensor.__iand__]),
        ("neg", [Tensor.__invert__, torch.negative]),
        ("matmul", [torch.matmul, Tensor.__matmul__, Tensor.__rmatmul__]),
        ("transpose", [torch.swapaxes, Tensor.transpose_]),
        ("cat", [torch.concat, torch.concatenate]),
        ("relu", [F.relu, torch.relu_, Tensor.relu]),
        ("getitem", [Tensor.__getitem__]),
        ("setitem", [Tensor.__setitem__]),
        ("get:shape", [Tensor.shape.__get__]),
    ],
)
def test_an_operator_has_one_name(name: str, functions: list[object]) -> None:
    assert {canonical(function) for function in functions} == {name}


def test_arguments_are_found_by_position_or_name() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    call = Call(Tape(nn.Identity()), torch.add, "add", (x,), {"other": y, "alpha": 2})
    assert call.arg(0, "input") is x
    assert call.arg(1, "other") is y
    assert call.arg(2, "out", "default") == "default"
    assert [id(t) for t in call.tensors()] == [id(x), id(y)]
    assert call.run().tolist() == [1, 1]


def test_tensors_are_found_in_nested_containers() -> None:
    a, b, c = torch.ones(3).unbind()
    found = list(tensors_in([a, ({"x": b}, 3, "text"), (None, [c])]))
    assert [id(t) for t in found] == [id(a), id(b), id(c)]


def test_tensors_are_told_with_what_a_model_may_refuse() -> None:
    passed = (torch.ones(2, 3), {"mask": torch.ones(2, dtype=torch.bool, device="meta")})
    assert in_words(passed) == "(2, 3) torch.float32 on cpu, (2,) torch.bool on meta"
    assert in_words(({}, 1)) == "no tensor"
