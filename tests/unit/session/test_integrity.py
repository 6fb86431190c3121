"""One pruner at a time on a model, and the model stays the one it was built for."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from decayprune.session.integrity import Anatomy, check_free, claim, give_up


class Owner:
    """Anything that can be referred to weakly."""


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2))


# ---------------------------------------------------------------- whose a model is


def test_a_model_is_free_until_it_is_claimed_and_after_it_is_given_up(model: nn.Module) -> None:
    owner = Owner()
    check_free(model)
    claim(model, owner)
    with pytest.raises(RuntimeError, match=r"Another pruner already works .* call its close\(\)"):
        check_free(model)
    give_up(model, Owner())  # nobody can give up what another one holds
    with pytest.raises(RuntimeError, match="Another pruner"):
        check_free(model)
    give_up(model, owner)
    give_up(model, owner)  # twice does no harm
    check_free(model)


def test_a_forgotten_owner_holds_nothing(model: nn.Module) -> None:
    owner = Owner()
    claim(model, owner)
    del owner
    gc.collect()
    check_free(model)


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ([], "must be a torch.nn.Module, found list"),
        (nn.ReLU, "found the class ReLU: make one"),
    ],
    ids=["list", "class"],
)
def test_what_is_no_model(what: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        check_free(what)


# ---------------------------------------------------------------- whether it is still the same


def parent(model: nn.Module) -> None:
    model[0] = nn.Sequential(*model[0])  # type: ignore[index]


def leaf(model: nn.Module) -> None:
    model[0][0] = nn.Linear(3, 4)  # type: ignore[index]


def parameter(model: nn.Module) -> None:
    model[1].weight = nn.Parameter(model[1].weight.detach())  # type: ignore[index]


def absent(model: nn.Module) -> None:
    model[1].bias = None  # type: ignore[index]


def shape(model: nn.Module) -> None:
    model[1].weight.data = torch.zeros(2, 3)  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (parent, "'0' is another module"),
        (leaf, "'0' is another module"),
        (parameter, r"1\.weight is another parameter, or not \(2, 4\)"),
        (absent, r"1\.bias is another parameter"),
        (shape, r"1\.weight is another parameter, or not \(2, 4\)"),
    ],
    ids=["parent", "leaf", "parameter", "absent", "shape"],
)
def test_an_edit_is_named(
    model: nn.Module, change: Callable[[nn.Module], None], named: str
) -> None:
    anatomy = Anatomy(model, dict(model.named_parameters()))
    anatomy.check()
    change(model)
    with pytest.raises(RuntimeError, match=f"changed between two steps: {named}.* build a new one"):
        anatomy.check()


def test_other_values_and_what_does_not_matter_are_no_edit(model: nn.Module) -> None:
    anatomy = Anatomy(model, {"0.0.weight": model.get_parameter("0.0.weight")})
    model.load_state_dict({name: v + 1 for name, v in model.state_dict().items()})
    model[1] = nn.Linear(4, 2)  # type: ignore[index,operator]
    model.half().float()  # the parameters are the same objects afterwards
    anatomy.check()
