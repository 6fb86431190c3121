"""Values of frozen parameters, kept from before anything decays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decayprune.method.frozen import Frozen


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape), requires_grad=False)


def test_only_frozen_ones_are_kept_and_only_what_they_were_at_first() -> None:
    trained, still = nn.Parameter(torch.randn(3)), table(2, 3)
    frozen, was = Frozen({"a": trained, "b": still}), still.clone()
    assert frozen.state_dict() == {}
    frozen.keep()
    still.mul_(0.5)
    frozen.keep()
    assert list(frozen.values) == ["b"]
    assert torch.equal(frozen.values["b"], was)


def test_they_are_saved_and_loaded_with_the_dtype_of_the_parameter() -> None:
    first = Frozen({"b": table(2, 3)})
    first.keep()
    again = Frozen({"b": table(2, 3).to(torch.float64)})
    again.load_state_dict(first.state_dict())
    assert again.values["b"].dtype == torch.float64
    assert torch.equal(again.values["b"].float(), first.values["b"])
    again.load_state_dict({})
    assert again.values == {}


def test_those_of_other_parameters_are_refused() -> None:
    first = Frozen({"b": table(2, 3)})
    first.keep()
    with pytest.raises(ValueError, match=r"b \(2, 3\)\. Those of this model are: none"):
        Frozen({}).load_state_dict(first.state_dict())
