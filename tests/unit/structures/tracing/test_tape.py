"""What rules write down, and what they are told when they ask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from decayprune.structures.tracing.labels import along, varying
from decayprune.structures.tracing.tape import Tape


@pytest.fixture
def tape() -> Tape:
    return Tape(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def marked(tape: Tape, *shape: int, dim: int = 1) -> tuple[Tensor, Tensor]:
    """An activation that carries fresh labels along one dimension."""
    x, labels = torch.zeros(shape), tape.partition.fresh(shape[dim])
    tape.put(x, along(labels, dim, x.shape))
    return x, labels


def reasons(tape: Tape, labels: Tensor) -> list[str | None]:
    component, why, texts = tape.partition.solve()
    return [texts[i] if i >= 0 else None for i in why[component[labels.numpy()]]]


def test_a_mark_belongs_to_one_tensor_and_dies_with_it(tape: Tape) -> None:
    x, labels = marked(tape, 2, 4)
    assert torch.equal(tape.labels(x), labels.expand(2, 4))
    assert tape.mark(x.clone()) is None
    assert tape.mark("no tensor") is None
    number, other = id(x), torch.zeros(2, 4)
    tape._marks[id(other)] = tape._marks[number]  # as if Python gave its place to another tensor
    assert tape.mark(other) is None


def test_one_index_that_was_picked_out_is_fixed(tape: Tape) -> None:
    x, labels = marked(tape, 2, 4)
    tape.put(x, labels[2].expand(2, 4))
    assert tape.mark(x) is None
    assert [reason is not None for reason in reasons(tape, labels)] == [False, False, True, False]


def test_channels_are_a_vector_and_nothing_varies_beside_them(tape: Tape) -> None:
    x, labels = marked(tape, 2, 4, 5)
    assert torch.equal(tape.channels(x, -2, "?"), labels)
    assert not tape.channels(torch.zeros(2, 4), 1, "?").any()
    grid = tape.partition.fresh(6)
    y = torch.zeros(2, 3)
    tape.put(y, grid.view(2, 3))
    first = tape.channels(y, 1, "rows too")
    component, _, _ = tape.partition.solve()
    assert torch.equal(first, grid[:3])
    assert (component[grid[:3].numpy()] == component[grid[3:].numpy()]).all()


def test_a_dimension_met_twice_is_unified(tape: Tape) -> None:
    weight = tape.model[0].weight
    a, b = tape.partition.fresh(4), tape.partition.fresh(4)
    assert tape.known(weight, 0) is None
    key = tape.label_dim(weight, 0, "row", a)
    assert tape.label_dim(weight, 0, "row", b) == key == ("0.weight", 0)
    assert torch.equal(tape.known(weight, 0), a)
    component, _, _ = tape.partition.solve()
    assert (component[a.numpy()] == component[b.numpy()]).all()


def test_what_is_no_parameter_cannot_carry_labels(tape: Tape) -> None:
    labels = tape.partition.fresh(4)
    assert tape.label_dim(None, 0, "row", labels) is None
    assert reasons(tape, labels) == [None] * 4
    assert tape.label_dim(tape.model[0].weight * 2, 0, "row", labels) is None
    (reason,) = set(reasons(tape, labels))
    assert reason.startswith("produced with a weight that is computed, not a parameter")


def test_names_and_owners(tape: Tape) -> None:
    assert tape.name(tape.model[1].running_mean) == "1.running_mean"
    assert tape.owner(tape.model[2].weight) == "2"
    assert tape.owner(torch.zeros(1)) == ""
    tape.stack.append("1")
    assert tape.owner(None) == "1"
    tape.seen.update(map(id, tape.model[0].parameters()))
    assert tape.unseen() == ["1", "2"]


def test_sources_are_numbered_once(tape: Tape) -> None:
    key = tape.label_dim(tape.model[1].weight, 0, "affine", tape.partition.fresh(4))
    scaled = tape.scaled_by(key, None)
    assert tape.scaled_by(key) == scaled
    bare = tape.unscaled(tape.partition.fresh(4))
    assert tape.has_scale(scaled | bare)
    assert not tape.has_scale(bare)
    assert tape.scaled_by(None) == frozenset()


def test_an_attribute_counts_labels_only_if_it_is_their_number(tape: Tape) -> None:
    labels = tape.partition.fresh(4)
    for name in ("out_features", "in_features", "training", "nothing"):
        tape.attribute("0", name, labels)
    tape.attribute("0", "out_features", labels.repeat_interleave(2), 2)
    assert [(m, a, d) for m, a, _, d in tape.attributes] == [
        ("0", "out_features", 1),
        ("0", "out_features", 2),
    ]
    tape.stack.append("2")
    tape.passes(labels)
    assert tape.passing == [("2", labels)]


def test_what_is_consumed_without_being_zero_is_unpinned(tape: Tape) -> None:
    x, labels = marked(tape, 2, 4)
    tape.consume(tape.mark(x), labels, ("2.weight", 1))
    assert tape.unpinned == []
    tape.put(x, labels.expand(2, 4), zero=False)
    tape.consume(tape.mark(x), labels, ("2.weight", 1))
    assert [value.tolist() for value in tape.unpinned] == [labels.tolist()]
    tape.consume(None, labels, None)
    assert len(tape.consumptions) == 2


def test_a_second_pass_counts_nothing_again(tape: Tape) -> None:
    tape.operator("0", 7)
    tape.operator("0", 0)
    tape.counting = False
    tape.operator("0", 7)
    assert tape.operators == [("0", 7, ())]


def test_marks_are_kept_as_views(tape: Tape) -> None:
    x = torch.zeros(2, 4, 3)
    tape.put(x, tape.partition.fresh(4).view(1, 4, 1).repeat(2, 1, 3))
    assert varying(tape.labels(x)) == [1]
