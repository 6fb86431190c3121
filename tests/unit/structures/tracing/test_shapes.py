"""Results without values look like torch's own, and what does not fit raises as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from decayprune.structures.tracing.call import canonical
from decayprune.structures.tracing.shapes import shape_of_result
from decayprune.structures.tracing.trace import trace

CALLS: dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]] = {
    "relu": (F.relu, [(2, 6, 5)], {}),
    "gelu": (F.gelu, [(2, 6, 5)], {"approximate": "tanh"}),
    "softmax": (F.softmax, [(2, 6, 5)], {"dim": 1}),
    "sum": (torch.add, [(2, 6, 5), (5,)], {}),
    "product": (torch.mul, [(6, 1), (2, 1, 5)], {}),
    "with a number": (torch.sub, [(6, 1), 2.5], {}),
    "batch norm": (F.batch_norm, [(2, 6, 5), (6,), (6,), (6,), (6,)], {}),
    "layer norm": (F.layer_norm, [(2, 6, 5), [6, 5], (6, 5), (6, 5)], {}),
    "group norm": (F.group_norm, [(2, 6, 5), 3, (6,), (6,)], {}),
    "linear": (F.linear, [(2, 6, 5), (4, 5), (4,)], {}),
    "linear without a bias": (F.linear, [(5,), (4, 5)], {"bias": None}),
    "attention": (F.scaled_dot_product_attention, [(2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 5)], {}),
}


def both(values: list[Any]) -> tuple[list[Any], list[Any]]:
    real = [torch.rand(value) if isinstance(value, tuple) else value for value in values]
    return real, [v.to("meta") if isinstance(v, Tensor) else v for v in real]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_result_has_the_shape_that_torch_gives_it(name: str) -> None:
    func, values, kwargs = CALLS[name]
    real, shapes = both(values)
    expected = func(*real, **kwargs)
    found = shape_of_result(canonical(func), func, shapes, kwargs)
    assert found is not None
    assert found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.is_contiguous() == expected.is_contiguous()


def test_in_place_it_is_the_same_tensor() -> None:
    x, y = torch.rand(2, 3, device="meta"), torch.rand(3, device="meta")
    assert shape_of_result("add", Tensor.add_, (x, y), {}) is x
    assert shape_of_result("add", Tensor.__iadd__, (x, y), {}) is x
    assert shape_of_result("add", Tensor.__add__, (x, y), {}) is not x
    assert shape_of_result("relu", F.relu, (x,), {"inplace": True}) is x


@pytest.mark.parametrize(
    ("func", "values", "kwargs"),
    [
        (F.layer_norm, [(2, 6), [5]], {}),
        (F.batch_norm, [(2, 6, 5), (5,), (5,)], {}),
        (F.group_norm, [(2, 6, 5), 4], {}),
        (F.scaled_dot_product_attention, [(2, 3, 7, 4), (2, 3, 9, 5), (2, 3, 9, 5)], {}),
        (F.linear, [(2, 6), (4, 5)], {}),
        (F.linear, [(2, 5), (4, 5), (5,)], {}),
        (F.linear, [(2, 5), (5,)], {}),
        (torch.add, [(2, 3), (3,)], {"alpha": 2}),
        (F.softmax, [(2, 3)], {"dim": 1, "dtype": torch.float64}),
    ],
)
def test_what_is_not_simple_is_left_to_torch(
    func: Callable[..., Any], values: list[Any], kwargs: dict[str, Any]
) -> None:
    assert shape_of_result(canonical(func), func, both(values)[1], kwargs) is None


def test_integers_and_tensors_with_values_are_left_to_torch() -> None:
    x = torch.rand(2, 3)
    assert shape_of_result("relu", F.relu, (x,), {}) is None
    assert shape_of_result("add", torch.add, (x.to("meta"), x), {}) is None
    assert shape_of_result("relu", F.relu, (x.int().to("meta"),), {}) is None


class Chooses(nn.Module):
    """Takes a way by a value, so that a pass without values cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.taken, self.other = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        return self.taken(x) if float(x.sum()) >= 0 else self.other(x)


def test_a_model_that_reads_values_is_traced_with_them() -> None:
    found = trace(Chooses(), torch.rand(2, 4))
    assert [group.layer for group in found.groups] == ["body"]
    reasons = {refusal.layer: refusal.reason for refusal in found.refusals}
    assert reasons["other"] == "not reached by the example inputs"


class Picks(nn.Module):
    """Picks tokens by numbers that it makes where its input lies."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device)
        return self.head(self.body(x)[rows, rows])


def test_labels_follow_no_index_without_values() -> None:
    found = trace(Picks(), torch.rand(2, 3, 4))
    assert [group.layer for group in found.groups] == ["body"]
    assert found.num_structures == 8


def test_a_large_layer_is_traced_without_its_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = set()

    def noting(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        devices.add(args[0].device.type)

    model = resnet18()
    model.layer1.register_forward_pre_hook(noting)
    found = trace(model, torch.randn(1, 3, 224, 224))
    assert devices == {"meta"}
    assert next(model.parameters()).device.type == "cpu"
    assert len(found.groups) == 12
