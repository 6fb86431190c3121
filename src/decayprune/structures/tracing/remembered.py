"""Sizes that a module remembers and no traced ``forward`` read: RepVGG fuses by ``in_channels``.

Which width such an integer counts, its name, its value and the layers inside the module tell. It
follows a cut where they leave no doubt. Where several widths fit it is left as it is, and listed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.structures.tracing.sizes import Origin
from decayprune.structures.tracing.solve import Solution
from decayprune.structures.tracing.tape import Tape

Attribute = tuple[str, str, Tensor, int]
"""As in :attr:`~decayprune.structures.structure_map.StructureMap.attributes`."""

_SIZE = re.compile(
    r"dim|size|width|hidden|channel|chs|feature|planes|filters|units|inner|embed|d_model|heads"
    r"|(^|_)n(um)?_?(\w+_)?head$|^groups$|^c_?$|^ch$|^nf$"
)
_NO_WIDTH = re.compile(
    r"kernel|patch|sample|img|image|window|stride|pool|vocab|class|length|seq|pos|resolution|grid|batch"
    r"|block|(?<!all_)head_(dim|size|width)|dim_head"
)
_INTO = re.compile(r"(^|_)in(put)?(_|$)|^c1$")
_WITHIN = re.compile(r"hidden(?!_size)|inner|^c_?$")
_OUT = re.compile(r"(^|_)out(put)?(_|$)|features$|head_hidden_size|^c2$")


class Candidate(NamedTuple):
    """A width inside a module: what a layer calls it (empty: nothing), structures by index."""

    name: str
    structures: Tensor


def remembered(
    tape: Tape, solution: Solution, known: Iterable[Attribute]
) -> tuple[list[Attribute], list[tuple[str, str, Tensor]]]:
    """Attributes that follow a width by name and value, and those that may or may not.

    Args:
        tape: The record of the traced pass(es).
        solution: What is prunable.
        known: Attributes that follow a width for sure.

    Returns:
        Attributes that follow; (module, attribute, structures it may count) of those that do not.
    """
    known = list(known)
    seen = {(module, name) for module, name, *_ in (*known, *tape.attributes)}
    seen |= {(r.origin.module, r.origin.attribute) for r in tape.readings.found}
    asked = {module: own for module in tape.modules if (own := _sizes(tape, module, seen))}
    inside = _candidates(tape, solution, known, asked)
    followed: list[Attribute] = []
    doubtful: list[tuple[str, str, Tensor]] = []
    for module, candidates in inside.items():
        for name, value in asked[module]:
            meant = _meant(name, [c for c in candidates if c.structures.numel() == value])
            if not any(bool((c.structures >= 0).any()) for c in meant):
                continue
            chosen = _chosen(name, meant)
            if chosen is None or Origin(module, name) in tape.readings.calculated:
                may = torch.cat([c.structures for c in meant if chosen is None or c is chosen])
                doubtful.append((module, name, torch.unique(may)))
            elif bool((chosen.structures >= 0).any()):
                followed.append((module, name, chosen.structures, 1))
    return followed, doubtful


def _candidates(
    tape: Tape, solution: Solution, known: list[Attribute], asked: Collection[str]
) -> dict[str, list[Candidate]]:
    """By module asked for: the widths of all inside it, in the order of the forward pass."""
    inside: dict[str, list[Candidate]] = {}
    told = [(m, name, solution.structures(v)) for m, name, v, n in tape.attributes if n == 1]
    told += [(m, name, v) for m, name, v, n in known if n == 1]
    for module, name, structures in told:
        for outer in _outwards(module):
            if outer in asked:
                inside.setdefault(outer, []).append(Candidate(name, structures))
    for module, labels in tape.passing:
        if module in asked:
            inside.setdefault(module, []).append(Candidate("", solution.structures(labels)))
    return inside


def _outwards(module: str) -> Iterator[str]:
    """A module and all that it lies in."""
    yield module
    while module:
        module = module.rpartition(".")[0]
        yield module


def _sizes(tape: Tape, module: str, seen: Collection[tuple[str, str]]) -> list[tuple[str, int]]:
    """Integers of a module of which only the name says that they count channels or heads."""
    return [
        (name, int(value))  # plain: to compare a size is to calculate with it
        for name, value in vars(tape.modules[module]).items()
        if isinstance(value, int) and int(value) > 1 and (module, name) not in seen
        if _SIZE.search(name) and not _NO_WIDTH.search(name)
    ]


def _meant(name: str, fits: list[Candidate]) -> list[Candidate]:
    """The widths, of those that fit by number, that an integer of this name can mean."""
    same = [c for c in fits if c.name == name]
    own = [c for c in fits if not c.name]  # what the module itself runs with
    if same or name == "groups":
        return same
    if "head" in name and not _OUT.search(name):
        return own
    if _WITHIN.search(name):
        return own or fits
    side = "in_" if _INTO.search(name) else "out_" if _OUT.search(name) else ""
    return [c for c in fits if c.name.startswith(side)] or fits


def _chosen(name: str, meant: list[Candidate]) -> Candidate | None:
    """The width that an integer counts; None where several differ."""
    if _INTO.search(name):
        return meant[0]
    if _OUT.search(name):
        return meant[-1]
    reads = [c for c in meant if c.name.startswith("in_")]
    makes = [c for c in meant if c.name.startswith("out_")]
    # A block that hands out the width it reads is named by it, whatever it computes with inside.
    ends = [reads[0], makes[-1]] if reads and makes and not _WITHIN.search(name) else []
    for several in (ends, meant):
        if several and all(torch.equal(c.structures, several[0].structures) for c in several):
            return several[0]
    return None
