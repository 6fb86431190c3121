"""Every field of a structure is checked; test_checkpoint.py tells dozens of lies to files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.checkpoint.fields import CheckpointError, check, dtype_name, is_size


def said() -> dict[str, Any]:
    return dp.structure(nn.Linear(2, 3))


def test_what_structure_says_passes() -> None:
    check(said(), "It", "structure()", "Again.")


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (None, r"It was not written by structure\(\)\."),
        ([], r"It was not written by structure\(\)\."),
        ({}, r"It was not written by structure\(\)\."),
        (said() | {"version": 9}, "It has version 9, this decayprune reads version 1"),
        (said() | {"tied": {"x": "y"}}, "It is damaged: tensor 'x' is tied to nothing. Again."),
        (said() | {"modules": {"": {"type": 3}}}, "It is damaged: .*has no type. Again."),
    ],
)
def test_what_is_wrong_and_what_to_do(lie: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        check(lie, "It", "structure()", "Again.")


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (0, int, True),
        (2**40 - 1, int, True),
        (2**40, int, False),
        (-1, int, False),
        (True, int, False),  # Python takes it for 1
        (1.0, int, False),
        ([], list, True),
        ([3, 0], list, True),
        ([3, -1], list, False),
        ([[3]], list, False),
        (3, list, False),
    ],
)
def test_sizes(value: object, kind: type, expected: bool) -> None:
    assert is_size(value, kind) is expected


def test_a_long_message_keeps_both_its_ends() -> None:
    assert str(CheckpointError("x" * 805)) == "x" * 805  # not worth shortening
    short = str(CheckpointError("begin" + "x" * 10_000 + "end"))
    assert short.startswith("beginx")
    assert short.endswith("xend")
    assert len(short) == 805


def test_names_of_dtypes() -> None:
    assert dtype_name(torch.zeros(1, dtype=torch.bfloat16)) == "bfloat16"
