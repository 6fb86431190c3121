"""Running a model on its example inputs leaves no trace on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures import trace
from decayprune.structures.example import (
    arguments,
    batch_size,
    outputs,
    quiet,
    refusal,
    returned,
)


def test_inputs_are_one_tensor_positions_or_keywords() -> None:
    x = torch.ones(1)
    assert arguments(x) == ((x,), {})
    assert arguments([x, 2]) == ((x, 2), {})
    assert arguments({"a": x}) == ((), {"a": x})
    with pytest.raises(TypeError, match=r"tuple of positional.*found int.*Pass one batch"):
        arguments(3)


def test_quiet_puts_flags_and_random_numbers_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()
    state = torch.get_rng_state()

    def interrupted() -> None:
        with quiet(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


class Out:
    """An output object that torch's own tree utilities do not know."""

    def __init__(self, **values: object) -> None:
        vars(self).update(values)


@pytest.mark.parametrize(
    "result",
    [
        lambda x: x,
        lambda x: {"a": [x], "count": x.long()},
        lambda x: Out(a=x, b=None),
    ],
    ids=["tensor", "nested", "object"],
)
def test_outputs_are_copies_of_every_floating_point_tensor(result) -> None:
    x = torch.rand(3)
    (found,) = outputs(Lambda(lambda m, x: result(x)), x)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()


class Cast(nn.Module):
    """Enters autocast by itself, as trainers make a forward() do, and returns float32."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc(x).float()


def test_autocast_inside_of_forward_is_left_too() -> None:
    torch.manual_seed(0)
    model, x = Cast(), torch.randn(2, 64)
    with torch.no_grad():
        exact = model.fc(x)
        assert not torch.equal(model(x), exact)
    assert torch.equal(outputs(model, x)[0], exact)
    assert trace(nn.Sequential(model, nn.Linear(64, 3)), x).num_structures == 64


def test_what_is_returned_is_found_in_whatever_holds_it() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    loop = Out(a=a, more=(b, {"c": [c]}), text="no", model=nn.Linear(1, 1))
    loop.itself = loop
    assert [v.numel() for v in returned([loop, None])] == [1, 2, 3]


def test_a_cache_is_no_result() -> None:
    a, b = torch.ones(1), torch.ones(2)
    assert list(returned({"logits": a, "past_key_values": ((b, b),)})) == [a]
    assert list(returned({"logits": a, "encoder_last_hidden_state": b})) == [a]
    memory = type("DynamicCache", (), {"__module__": "transformers.cache_utils"})()
    memory.keys = b
    assert list(returned((a, memory))) == [a]
    assert [v.numel() for v in returned((a, Out(keys=b)))] == [1, 2]


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        (torch.rand(5, 3, 8, 8), 5),
        (([torch.rand(3, 8, 8), torch.rand(3, 9, 9)],), 2),
        (([torch.rand(3, 8, 8)], [{"boxes": torch.rand(4, 4)}]), 1),
        ({"images": [torch.rand(3, 8, 8)] * 3}, 3),
        ({"flag": True, "ids": torch.ones(7, 2)}, 7),
        ((torch.tensor(3.0), [torch.rand(6, 2)]), 6),
        (([torch.rand(4, 2), torch.rand(4, 2)],), 4),
        ((1,), 1),
    ],
)
def test_a_batch_is_a_list_of_images_or_the_first_size(inputs, size: int) -> None:
    assert batch_size(inputs) == size


def test_a_refusal_goes_into_a_sentence() -> None:
    assert refusal(ValueError(" expected 3 channels.\n")) == "ValueError: expected 3 channels"
