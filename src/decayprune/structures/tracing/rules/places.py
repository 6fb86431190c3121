"""Rules for calls that name places along a dimension: parts, slices, indices.

A place that is a number in the code cannot follow a cut, and the width stays whole. A place that
is read from an attribute, or computed from the width itself (``x[:, : x.shape[1] // 2]``), can.
Equal parts lose the same offsets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import core, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.sizes import rows
from decayprune.structures.tracing.tape import Tape

_SLICED = "sliced at fixed places"


def moved(call: Call) -> tuple[Tensor, Mark | None]:
    """The tensor that is moved, and what is known of it."""
    x = call.args[0] if call.args else next(iter(call.tensors()))
    return x, call.tape.mark(x)


def divide(call: Call) -> Any:
    """chunk, split, tensor_split, unbind: what is left of each part of a labelled width."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    unbound = call.name == "unbind"
    dim = call.arg(1 if unbound else 2, "dim", 0) % x.dim()
    sizes = [1] * len(out) if unbound else [part.shape[dim] for part in out]
    pieces = list(found.labels.split_with_sizes(sizes, dim))
    if dim in varying(found.labels):
        pieces = _parts(call, found.labels, dim, pieces)
    for part, piece in zip(out, pieces, strict=True):
        tape.put(part, piece.squeeze(dim) if unbound else piece, found.sources, found.zero)
    return out


def _parts(call: Call, labels: Tensor, dim: int, pieces: list[Tensor]) -> list[Tensor]:
    """Labels of the parts of a width: equal ones lose the same offsets, others their own."""
    tape, sizes = call.tape, [piece.shape[dim] for piece in pieces]
    asked = call.arg(1, "split_size_or_sections", call.kwargs.get("split_size"))
    if not call.name.startswith("split"):
        asked = None  # a number of parts, or places
    each = list(asked) if isinstance(asked, (list, tuple)) else [asked] * len(pieces)
    followed = [tape.readings.read(n, piece, dim) for n, piece in zip(each, pieces, strict=True)]
    if len(set(sizes)) == 1 and sizes[0] > 1:
        _tie_equal_parts(tape, labels, dim, len(sizes), call.name)
        if varying(labels) == [dim]:
            tape.passes(core(pieces[0]).reshape(-1))
        return pieces
    reason = f"{call.name} at fixed places of the width"
    if not any(followed):
        return list(tape.partition.collapse(labels, dim, reason).split_with_sizes(sizes, dim))
    return [
        piece if follows else tape.partition.collapse(piece, dim, reason)
        for piece, follows in zip(pieces, followed, strict=True)
    ]


def _tie_equal_parts(tape: Tape, labels: Tensor, dim: int, count: int, name: str) -> None:
    """So many equal parts of a width lose the same offsets."""
    slim = core(labels)
    shape = (*slim.shape[:dim], count, -1, *slim.shape[dim + 1 :])
    parts = slim.reshape(shape)
    first = parts.narrow(dim, 0, 1).expand(parts.shape)
    tape.partition.unify(parts, first, f"{name} beside a fixed width")


def glu(call: Call) -> Any:
    """glu: two equal halves of a width, the second one a gate."""
    tape, out, x = call.tape, call.run(), call.arg(0, "input")
    found = tape.mark(x)
    if found is None:
        return out
    dim = call.arg(1, "dim", -1) % x.dim()
    labels, half = found.labels, out.shape[dim]
    if dim in varying(labels):
        _tie_equal_parts(tape, labels, dim, 2, "glu")
    tape.put(out, labels.narrow(dim, 0, half), found.sources, found.zero)
    return out


def take(call: Call) -> Any:
    """x[...]: places of a labelled dimension that are named by number cannot follow a cut."""
    tape, out, (_, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    later: list[tuple[Tensor, str]] = []
    labels = index_labels(tape, found.labels, call.args[1], later)
    if later:
        tape.fix_if_read(out, later)
    else:
        tape.put(out, labels[call.args[1]], found.sources, found.zero)
    return out


def index_labels(
    tape: Tape, labels: Tensor, index: Any, later: list[tuple[Tensor, str]] | None = None
) -> Tensor:
    """Labels, with every dimension collapsed of which an index takes a part that cannot follow.

    Args:
        tape: The record.
        labels: Labels of what is indexed.
        index: The index.
        later: Gets what would have to be fixed, in place of fixing it.
    """
    for dim, item in _by_dimension(index, labels.dim()):
        if _is_whole(item, labels.shape[dim]) or _slice_follows(tape, labels, dim, item):
            continue
        if later is not None and varying(labels) == [dim]:
            later.append((labels, _SLICED))
            return labels
        labels = tape.partition.collapse(labels, dim, _SLICED)
    return labels


def _slice_follows(tape: Tape, labels: Tensor, dim: int, item: Any) -> bool:
    """Whether both ends of a slice of a labelled dimension follow a cut."""
    if dim not in varying(labels) or not isinstance(item, slice) or item.step not in (None, 1):
        return False
    ends = [end for end in (item.start, item.stop) if end is not None]
    return all(_follows(tape, labels, dim, end) for end in ends)


def _follows(tape: Tape, labels: Tensor, dim: int, place: Any) -> bool:
    """Whether a place along a dimension follows a cut: an attribute, or a share of the width."""
    width = labels.shape[dim]
    if type(place) is int and place == 0:
        return True
    if tape.readings.is_attribute(place) and 0 < abs(place) <= width:
        side = labels.narrow(dim, 0 if place > 0 else width + place, abs(place))
        return tape.readings.read(place, side, dim)
    of, share = tape.readings.extent(place) or (None, None)
    if of is None or share is None or not torch.equal(of, rows(labels, dim)):
        return False
    if width % share.denominator or abs(share) > 1:
        return False
    _tie_equal_parts(tape, labels, dim, share.denominator, "sliced")
    return True


def _by_dimension(index: Any, dims: int) -> list[tuple[int, Any]]:
    """(dimension, item) of an index; a mask of several dimensions stands at each of them."""
    items = list(index) if isinstance(index, tuple) else [index]
    spans = [
        item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1 for item in items
    ]
    spans = [0 if item is None else n for item, n in zip(items, spans, strict=True)]
    used = sum(n for item, n in zip(items, spans, strict=True) if item is not Ellipsis)
    found: list[tuple[int, Any]] = []
    dim = 0
    for item, span in zip(items, spans, strict=True):
        if item is Ellipsis:
            dim += dims - used
            continue
        found += [(d, item) for d in range(dim, dim + span)]
        dim += span
    return found


def _is_whole(item: Any, size: int) -> bool:
    return isinstance(item, slice) and item.indices(size) == (0, size, 1)


def take_along(call: Call) -> Any:
    """narrow, select, index_select: as x[...], with the dimension as an argument."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    dim = call.arg(1, "dim") % x.dim()
    if call.name == "narrow" and _stretch_follows(call, found.labels, dim):
        stretch = found.labels.narrow(dim, call.arg(2, "start"), call.arg(3, "length"))
        tape.put(out, stretch, found.sources, found.zero)
        return out
    if varying(found.labels) == [dim]:
        tape.fix_if_read(out, [(found.labels, _SLICED)])
        return out
    labels = tape.partition.collapse(found.labels, dim, _SLICED)
    index = labels.narrow(dim, 0, 1)
    labels = index.squeeze(dim) if out.dim() < x.dim() else index.expand(out.shape)
    tape.put(out, labels, found.sources, found.zero)
    return out


def _stretch_follows(call: Call, labels: Tensor, dim: int) -> bool:
    """Whether start and length of a narrow follow a cut."""
    start, length = call.arg(2, "start"), call.arg(3, "length")
    if dim not in varying(labels) or not _follows(call.tape, labels, dim, start):
        return False
    if start == 0:
        return _follows(call.tape, labels, dim, length)
    return call.tape.readings.read(length, labels.narrow(dim, start, length), dim)


def turn(call: Call) -> Any:
    """roll, flip: the places of a labelled dimension are moved by a fixed number."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    dims = call.arg(2 if call.name == "roll" else 1, "dims", ())
    labels = found.labels
    for d in (dims,) if isinstance(dims, int) else tuple(dims) or range(x.dim()):
        labels = tape.partition.collapse(labels, d % x.dim(), f"{call.name} along the width")
    tape.put(out, labels, found.sources, found.zero)
    return out


PLACES = {
    **dict.fromkeys(["chunk", "split", "tensor_split", "unbind", "split_with_sizes"], divide),
    **dict.fromkeys(["narrow", "select", "index_select"], take_along),
    **dict.fromkeys(["roll", "flip"], turn),
    "getitem": take,
    "glu": glu,
}
