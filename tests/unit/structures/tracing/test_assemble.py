"""A solved tape laid out as a map: slices, groups, families, refusals, attributes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from decayprune.structures import FIXED, Refusal, StructureMap, trace
from decayprune.structures.tracing.assemble import assemble
from decayprune.structures.tracing.marks import Consumption
from decayprune.structures.tracing.tape import Tape


def written(model: nn.Sequential) -> Tape:
    """A tape of linear layers in a row: each reads the width of the one before."""
    tape = Tape(model)
    for producer, consumer in itertools.pairwise(model):
        labels = tape.partition.fresh(producer.weight.shape[0])
        row = tape.label_dim(producer.weight, 0, "row", labels)
        bias = tape.label_dim(producer.bias, 0, "row", labels)
        column = tape.label_dim(consumer.weight, 1, "column", labels)
        tape.consumptions.append(Consumption(labels, tape.scaled_by(row, bias), column))
        for layer, attribute in ((producer, "out_features"), (consumer, "in_features")):
            tape.attribute(tape.owner(layer.weight), attribute, labels)
        tape.seen.update(map(id, [*producer.parameters(), *consumer.parameters()]))
    return tape


def laid_out(tape: Tape, *ignored: str) -> StructureMap:
    return assemble(tape, set(ignored), batch=3)


def test_slices_say_who_carries() -> None:
    found = laid_out(written(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))))
    assert [(s.name, s.dim, s.role, s.carrier.all().item()) for s in found.slices] == [
        ("0.weight", 0, "row", True),
        ("0.bias", 0, "row", True),
        ("1.weight", 1, "column", False),
    ]
    assert found.batch == 3


def test_groups_name_producers_first_and_families_are_shapes() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 5), nn.Linear(5, 2))
    first, second, third, last = laid_out(written(model)).groups
    assert first.layers == ("0", "1")
    assert (second.layer, second.start, second.stop) == ("1", 4, 8)
    assert first.family == second.family
    assert len({second.family, third.family, last.family}) == 3


def test_a_part_that_stays_is_refused_with_its_width() -> None:
    tape = written(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    tape.partition.fix(tape.known(tape.model[0].weight, 0)[1:3], "because")
    found = laid_out(tape)
    assert found.refusals == (Refusal("0", 2, "because"),)
    assert found.slices[0].structure.tolist() == [0, FIXED, FIXED, 1]
    assert not found.slices[0].carrier[1:3].any()


def test_layers_that_were_never_reached_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    tape = written(model)
    tape.seen.difference_update(map(id, model[1].parameters()))
    assert laid_out(tape).refusals == (Refusal("1", 2, "not reached by the example inputs"),)


def test_attributes_come_once_and_only_where_something_can_leave() -> None:
    tape = written(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)))
    tape.attributes += tape.attributes
    found = laid_out(tape, "1")
    assert [(m, a) for m, a, _, _ in found.attributes] == [
        ("0", "out_features"),
        ("1", "in_features"),
    ]


def test_structures_that_zeros_do_not_hold_are_unpinned() -> None:
    tape = written(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    tape.unpinned.append(tape.known(tape.model[0].weight, 0)[2:])
    assert laid_out(tape).unpinned.tolist() == [False, False, True, True]


def channels(model: nn.Module, x: torch.Tensor) -> list[tuple[int, int]]:
    return [(group.width, group.channels) for group in trace(model, x).groups]


def test_channels_are_counted_where_a_structure_has_fewest() -> None:
    """Gates, halves and places that come out of one width share a channel of the next."""
    image = torch.randn(1, 4, 4, 4)
    shuffled = nn.Sequential(nn.Conv2d(4, 32, 1), nn.PixelShuffle(2), nn.Conv2d(8, 4, 1))
    assert channels(shuffled, image) == [(4, 1)]
    halves = nn.Sequential(nn.Linear(4, 16), nn.GLU(), nn.Linear(8, 4))
    assert channels(halves, image) == [(2, 1)]
    flat = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(128, 4))
    assert channels(flat, image) == [(1, 1)]


@pytest.mark.parametrize("grouped", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_grouped_convolution_has_as_many_channels_as_groups(grouped: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ReLU(), grouped(16, 12, 1, groups=4))
    assert channels(model, torch.randn(1, 4, 4, 4)) == [(4, 4)]
