"""What is decided from a tape that was written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decayprune.structures import FIXED
from decayprune.structures.tracing.marks import Consumption
from decayprune.structures.tracing.solve import Solution, solve
from decayprune.structures.tracing.tape import Tape


def written(width: int = 6) -> tuple[Tape, Tensor]:
    """Layer 0 produces a width that layer 1 reads; layer 0 carries."""
    tape = Tape(nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)))
    labels = tape.partition.fresh(width)
    row = tape.label_dim(tape.model[0].weight, 0, "row", labels)
    column = tape.label_dim(tape.model[1].weight, 1, "column", labels)
    tape.consumptions.append(Consumption(labels, tape.scaled_by(row), column))
    return tape, labels


def why(solution: Solution, labels: Tensor) -> set[str | None]:
    found = solution.why[solution.component[labels.numpy()]]
    return {solution.reasons[i] if i >= 0 else None for i in found}


def test_a_width_that_is_produced_and_read_is_free() -> None:
    tape, labels = written()
    solution = solve(tape, set())
    assert why(solution, labels) == {None}
    assert solution.structures(labels).tolist() == [0, 1, 2, 3, 4, 5]
    assert solution.width.tolist() == [1] * 6
    assert solution.carried["0.weight", 0][solution.component[labels.numpy()]].all()
    assert ("1.weight", 1) not in solution.carried


def test_what_nothing_scales_is_carried_by_the_columns_that_read_it() -> None:
    tape, labels = written()
    tape.consumptions = [Consumption(labels, tape.unscaled(labels), ("1.weight", 1))]
    solution = solve(tape, set())
    assert solution.carried["1.weight", 1][solution.component[labels.numpy()]].all()
    assert ("0.weight", 0) not in solution.carried


def test_all_of_a_width_never_leaves() -> None:
    tape, labels = written()
    tape.partition.unify(labels, labels[:1].expand(6), "?")
    assert why(solve(tape, set()), labels) == {"all of the width would leave together"}


def test_a_raw_parameter_alone_is_produced_by_no_layer() -> None:
    tape, _ = written()
    labels = tape.partition.fresh(6)
    tape.label_dim(tape.model[0].bias, 0, "affine", labels)
    assert why(solve(tape, set()), labels) == {"produced by no layer"}


def test_what_nothing_reads_stays() -> None:
    tape, labels = written()
    tape.consumptions.clear()
    assert why(solve(tape, set()), labels) == {"nothing reads it"}


def test_ignored_and_frozen_layers() -> None:
    tape, labels = written()
    tape.model[1].weight.requires_grad_(False)
    assert why(solve(tape, set()), labels) == {"frozen (`1.weight` has requires_grad=False)"}
    tape, labels = written()
    tape.partition.fix(labels, "said before")
    assert why(solve(tape, {"1"}), labels) == {"said before"}  # it produces another width
    assert why(solve(tape, {"0"}), labels) == {"ignored"}


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.LayerNorm((2, 6))], ids=["known", "unknown"])
def test_a_mixed_width_is_free_where_the_norm_can_count(norm: nn.LayerNorm) -> None:
    tape, labels = written()
    tape.modules["norm"] = norm
    tape.mixed.append((labels, "norm"))
    (reason,) = why(solve(tape, set()), labels)
    assert (reason is None) == (norm.weight.dim() == 1)
    assert reason is None or reason.startswith("mixed by `norm`, a LayerNorm, which cannot count")


def test_a_reshaped_width_loses_the_same_offsets_everywhere() -> None:
    tape, labels = written()
    tape.matrices.append(labels.view(2, 3))
    assert solve(tape, set()).structures(labels).tolist() == [0, 1, 2, 0, 1, 2]


def test_an_offset_that_is_fixed_in_one_row_is_fixed_in_all() -> None:
    tape, labels = written()
    tape.matrices.append(labels.view(2, 3))
    tape.partition.fix(labels[4:5], "one of them")
    found = solve(tape, set()).structures(labels)
    assert found.tolist() == [0, FIXED, 1, 0, FIXED, 1]


@pytest.mark.parametrize("heads", [True, False])
def test_whole_rows_leave_only_as_heads_of_an_attention(heads: bool) -> None:
    tape, labels = written()
    rows = labels.view(2, 3)
    tape.matrices.append(rows)
    tape.partition.collapse(rows, 1, "whole rows")
    if heads:
        tape.heads.append(rows[:, 0])
    solution = solve(tape, set())
    if heads:
        assert solution.structures(labels).tolist() == [0, 0, 0, 1, 1, 1]
        assert solution.width.tolist() == [3, 3]
    else:
        assert why(solution, labels) == {"a reshape divides it into a fixed number of parts"}


def test_structures_are_numbered_by_group_and_inside_it_along_the_first_row() -> None:
    tape = Tape(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)))
    a, b = tape.partition.fresh(4), tape.partition.fresh(4)
    for layer, labels in enumerate((a.flip(0), b)):
        row = tape.label_dim(tape.model[layer].weight, 0, "row", labels)
        column = tape.label_dim(tape.model[layer + 1].weight, 1, "column", labels)
        tape.consumptions.append(Consumption(labels, tape.scaled_by(row), column))
    solution = solve(tape, set())
    assert solution.structures(a.flip(0)).tolist() == [0, 1, 2, 3]
    assert solution.structures(b).tolist() == [4, 5, 6, 7]
    assert solution.group.tolist() == [0] * 4 + [1] * 4
    assert solution.index.tolist() == [0, 1, 2, 3] * 2


def test_pairs_of_components_and_dimensions_against_a_loop() -> None:
    tape, labels = written()
    tape.partition.unify(labels[:2], labels[4:], "?")
    incidence = solve(tape, set()).incidence
    component, _, _ = tape.partition.solve()
    pairs: dict[tuple[int, int], list[int]] = {}
    place = 0
    for number, item in enumerate(tape.labelled_dims.values()):
        for label in item.labels.tolist():
            pairs.setdefault((number, int(component[label])), []).append(place)
            place += 1
    found = zip(incidence.on, incidence.component, strict=True)
    assert [(int(on), int(c)) for on, c in found] == sorted(pairs)
    assert incidence.count.tolist() == [len(pairs[key]) for key in sorted(pairs)]
    assert incidence.first.tolist() == [pairs[key][0] for key in sorted(pairs)]
    assert np.array_equal(incidence.starts, [0, 6])
    assert incidence.rows().tolist() == [True] * 4 + [False] * 4
    assert torch.equal(incidence.dims[0].labels, labels)
