"""The look before the first step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import decayprune as dp
from cases import CASES
from decayprune.structures.structure_map import Refusal
from loops import INPUTS, net, same


def test_it_lists_every_group_and_what_it_is_worth() -> None:
    model = net()
    before = copy.deepcopy(model)
    found = dp.inspect(model, INPUTS)
    assert same(before, model)
    assert {group.layer: group.structures for group in found.groups} == {
        "stem.0": 12,
        "a.0": 10,
        "c": 8,
    }
    assert found.params == sum(p.numel() for p in model.parameters())
    inside = next(group for group in found.groups if group.layer == "a.0")
    # 9 of 10 channels: filters, two norm weights, columns of b.
    assert inside.params == 9 * (12 * 9 + 2 + 12 * 9)
    assert inside.macs == 9 * (12 * 9 + 12 * 9) * 64
    assert {"a.0", "a.1", "b.0"} <= set(inside.layers)
    assert 0 < found.least_macs < 0.1
    assert found.structures.num_structures == 30


def test_the_table_names_groups_and_refusals() -> None:
    text = str(dp.inspect(net(), INPUTS, ignored_layers=["c"]))
    for word in ("stem.0", "a.0", "22", "Left alone:", "c (8 wide)", "fc"):
        assert word in text
    lines = text.splitlines()
    assert lines[lines.index("  ignored:") + 1] == "    c (8 wide)"
    assert f"{sum(p.numel() for p in net().parameters()):,} parameters" in text


@pytest.mark.parametrize("case", ["keywords", "conv_1d_and_3d"])
def test_any_kind_of_example_inputs(case: str) -> None:
    model, inputs = CASES[case]()
    assert dp.inspect(model, inputs).groups


def test_a_model_with_nothing_to_prune_is_no_error() -> None:
    found = dp.inspect(torch.nn.Linear(4, 3), torch.zeros(1, 4))
    assert found.groups == ()
    assert [refusal.layer for refusal in found.refusals]
    assert found.least_macs == 1
    assert "Can be pruned: 0 structures" in str(found)
    assert "layers cut together" not in str(found)


def test_refusals_for_one_reason_stand_under_it_in_lines_that_fit() -> None:
    refusals = [Refusal(f"blocks.{i}.attn", 96, f"forward() fails (shape {i})") for i in range(9)]
    refusals.append(Refusal("", 10, "the model's output"))
    found = dp.inspect(net(), INPUTS)
    text = str(dataclasses.replace(found, refusals=tuple(refusals)))
    tail = text.partition("Left alone:\n")[2]
    assert tail.startswith("  forward() fails (shape 0):\n    blocks.0.attn (96 wide), blocks.1.")
    assert tail.endswith("blocks.8.attn (96 wide)\n  the model's output:\n    the model (10 wide)")
    assert max(map(len, tail.splitlines())) <= 96


def test_one_line_in_a_list_and_tables_in_a_notebook() -> None:
    found = dp.inspect(net(), INPUTS, ignored_layers=["c"])
    assert repr(found).startswith("<Inspection: 22 structures in 2 groups,")
    assert len(repr(found)) < 200
    html = found._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2
    for group in found.groups:
        assert f'<td style="text-align:left">{group.layer}</td>' in html
    assert "ignored" in html


def test_residual_branches_are_listed_if_asked_for() -> None:
    found = dp.inspect(net(), INPUTS, depth=True)
    (branch,) = found.branches
    assert (branch.layer, branch.layers) == ("b", ("a", "b"))
    assert branch.macs == 64 * 2 * 12 * 10 * 9
    assert branch.params == 2 * (12 * 10 * 9) + 2 * (10 + 12)
    assert "residual branch" in str(found)
    assert "Residual branches" in found._repr_html_()
    assert not dp.inspect(net(), INPUTS).branches


def test_branches_that_stay_are_listed_with_their_reason() -> None:
    found = dp.inspect(net(), INPUTS, ["b"], depth=True)
    assert not found.branches
    assert found.kept_branches == (Refusal("b", 0, "ignored"),)
    assert "  b: ignored" in str(found).splitlines()
    assert "ignored" in found._repr_html_()
