"""Tables of times: what lies between the measured widths, and what is refused."""

from __future__ import annotations

import copy
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from decayprune.latency.table import Grid, LayerKey, Table

KEY = LayerKey.of(nn.Linear(8, 4), torch.zeros(2, 8), (True, False))
GRID = Grid((0.0, 0.5, 1.0), (0.0, 1.0), ((0.0, 0.0), (0.0, 3.0), (0.0, 4.0)))
TABLE = Table({KEY: GRID}, scale=0.5, rest=2.0, whole=4.0, fixed=1.0)


def at(table: Table, share: float) -> float:
    return table.at([(KEY, share, 1.0)], share)


def test_equal_calls_have_equal_keys() -> None:
    layer = nn.Conv2d(8, 4, 3)
    keys = [
        LayerKey.of(nn.Conv2d(8, 4, 3), torch.zeros(2, 8, 5, 5), (True, True)),
        LayerKey.of(layer, torch.ones(2, 8, 5, 5), (True, True)),
        LayerKey.of(layer, torch.ones(2, 8, 5, 5), (True, False)),
        LayerKey.of(layer, torch.ones(2, 8, 5, 6), (True, True)),
        LayerKey.of(layer, torch.ones(2, 8, 5, 5).double(), (True, True)),
        LayerKey.of(
            layer, torch.ones(2, 8, 5, 5).to(memory_format=torch.channels_last), (True, True)
        ),
        LayerKey.of(nn.Conv2d(8, 4, 3, stride=2), torch.ones(2, 8, 5, 5), (True, True)),
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == len({str(key) for key in keys}) == 6
    assert keys[5].contiguous() == keys[0]


def test_a_grid_is_bilinear_between_its_widths() -> None:
    grid = Grid.measured([2, 4], [5, 10], torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    assert (grid.ins, grid.outs) == ((0, 0.5, 1), (0, 0.5, 1))
    for i, j, time in ((0.5, 0.5, 1), (0.5, 1, 2), (1, 0.5, 3), (1, 1, 8)):
        assert grid(i, j) == time
    assert grid(0.75, 0.75) == (1 + 2 + 3 + 8) / 4
    assert grid(0.25, 0.5) == 0.5
    assert grid(0, 0.7) == grid(0.7, 0) == 0


def test_times_never_fall_with_a_width() -> None:
    grid = Grid.measured([2, 4], [5, 10], torch.tensor([[3.0, 2.0], [1.0, 4.0]]))
    assert grid.times == ((0, 0, 0), (0, 3, 3), (0, 3, 4))


def test_the_parts_are_summed() -> None:
    assert at(TABLE, 1.0) == 4.0
    # Half of the input: the layer takes 3, scaled 1.5; of the rest 1 stays, and 1 is halved.
    assert at(TABLE, 0.5) == pytest.approx(1.5 + 1 + 0.5)
    assert TABLE.unbent([(KEY, 0.5, 1.0)], 0.5) == pytest.approx(0.75)


def test_anchors_are_met_and_the_order_of_widths_stays() -> None:
    bent = TABLE.anchored(0.75, 0.9).anchored(0.5, 0.6)
    assert bent.anchors == ((0.5, 0.6), (0.75, 0.9))
    assert at(bent, 0.5) == pytest.approx(4 * 0.9)
    assert at(bent, 1.0) == 4.0
    times = [at(bent, share / 20) for share in range(21)]
    assert all(a <= b for a, b in pairwise(times))


def test_a_new_anchor_wins_over_those_that_contradict_it() -> None:
    bent = TABLE.anchored(0.5, 0.6).anchored(0.4, 0.7)
    assert bent.anchors == ((0.4, 0.7),)
    assert bent.anchored(0.4, 0.5).anchors == ((0.4, 0.5),)
    assert bent.anchored(1.0, 0.5) is bent
    assert bent.anchored(0.9, 1.2).anchors[-1] == (0.9, 1.0)


def test_saving_and_loading_as_text() -> None:
    table = TABLE.anchored(0.5, 0.6)
    text = json.dumps(table.state_dict())
    assert Table.from_state_dict(json.loads(text), {str(KEY): KEY}) == table


def test_the_tables_of_earlier_versions_load() -> None:
    key = "('Linear', 'in_features=8, out_features=4, bias=True', (2, 8), (8, 1), torch.float32, "
    old = {
        "layers": {
            key + "True, False)": {
                "in": [0.0, 0.5, 1.0],
                "out": [0.0, 1.0],
                "times": [[0.0, 0.0], [0.0, 3.0], [0.0, 4.0]],
            }
        },
        "scale": 0.5,
        "rest": 2.0,
        "whole": 4.0,
        "fixed": 1.0,
        "estimated half": 0.75,
        "measured half": 0.8,
    }
    assert Table.from_state_dict(old, {str(KEY): KEY}) == TABLE.anchored(0.75, 0.8)
    old["estimated half"] = 1.0  # the clock shook: nothing was learnt
    assert Table.from_state_dict(old, {str(KEY): KEY}) == TABLE


def test_damaged_and_foreign_tables_are_refused() -> None:
    good = TABLE.state_dict()
    name = str(KEY)

    def refused(match: str, **changed: object) -> None:
        with pytest.raises(ValueError, match=rf"do not fit: .*{match}.* example_inputs"):
            Table.from_state_dict({**good, **changed}, {str(KEY): KEY})

    refused("layers or their inputs are others", layers={"another": good["layers"][name]})
    refused("scale is a number from 0, found nan", scale=float("nan"))
    refused("real number", whole=None)
    refused("anchors rise", anchors=[[0.5, 0.6], [0.4, 0.7]])
    for field, value, match in (
        ("in", [0.0, 0.7, 0.5], "rise from 0 to 1"),
        ("out", [0.5, 1.0], "rise from 0 to 1"),
        ("times", [[0.0, 0.0], [0.0, 3.0]], "for each pair"),
        ("times", [[0.0, 0.0], [0.0, -1.0], [0.0, 4.0]], "numbers from 0"),
    ):
        layers = copy.deepcopy(good["layers"])
        layers[name][field] = value
        refused(match, layers=layers)
    for nothing in (None, {}, []):
        with pytest.raises(ValueError, match="do not fit"):
            Table.from_state_dict(nothing, {str(KEY): KEY})
