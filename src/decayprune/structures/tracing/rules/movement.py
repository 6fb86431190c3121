"""Rules for data movement: it need not be understood, it is executed on the labels.

What has to be understood is only where a call names places along a labelled dimension: a slice at
a fixed position cannot follow a cut, equal chunks lose the same offsets. A reshape that spreads a
width over two dimensions is remembered; who reads it decides which of the two gives way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import compress, core, varying
from decayprune.structures.tracing.tape import Mark, Tape

RESHAPES = "reshape view flatten unflatten view_as ravel reshape_as"
FREE = (
    "permute transpose t get:T get:mT get:H movedim squeeze unsqueeze expand expand_as repeat tile "
    "broadcast_to repeat_interleave adjoint pixel_unshuffle atleast_1d "
    "atleast_2d atleast_3d"
)


def moved(call: Call) -> tuple[Tensor, Mark | None]:
    """The tensor that is moved, a raw parameter or buffer labelled along its last dimension."""
    x = call.args[0] if call.args else next(iter(call.tensors()))
    return x, call.tape.raw(x)


def _spread(call: Call, out: Any, result: Any, found: Mark) -> Any:
    for value, labels in zip(tensors_in(out), tensors_in(result), strict=True):
        call.tape.put(value, labels, found.sources, found.zero)
    return out


def free(call: Call) -> Any:
    """Movement that asks nothing of the widths."""
    out, (x, found) = call.run(), moved(call)
    if found is None:
        return out
    kwargs = {k: v for k, v in call.kwargs.items() if v is not x}
    return _spread(call, out, call.func(found.labels, *call.args[1:], **kwargs), found)


def reshape(call: Call) -> Any:
    """view, flatten ...: remembered where it spreads a width over several dimensions."""
    out, (_, found) = call.run(), moved(call)
    if found is None:
        return out
    if out.numel() != found.labels.numel():  # view(dtype): other elements
        call.tape.partition.fix(found.labels, "reinterpreted as another dtype")
        return out
    labels = compress(found.labels.reshape(out.shape))
    dims = varying(labels)
    if len(dims) > 1:
        call.tape.matrices.append(core(labels))
    elif dims and out.shape[dims[0]] in _named_sizes(call):
        call.tape.sizes(core(labels).reshape(-1))
    call.tape.put(out, labels, found.sources, found.zero)
    return out


def _named_sizes(call: Call) -> list[Any]:
    """Sizes that a call names, one by one or in a list."""
    named: list[Any] = []
    for value in (*call.args[1:], *call.kwargs.values()):
        named += value if isinstance(value, (tuple, list)) else [value]
    return [value for value in named if type(value) is int]


def join(call: Call) -> Any:
    """Cat and stack: widths follow each other; across another dimension they are unified."""
    tape, out = call.tape, call.run()
    parts = call.arg(0, "tensors")
    marks = [tape.raw(part) for part in parts]
    known = [mark for mark in marks if mark is not None]
    if not known:
        return out
    dim = call.arg(1, "dim", call.kwargs.get("axis", 0)) % out.dim()
    stacked = call.name == "stack"
    zeros = torch.zeros((), dtype=torch.int64)
    labels = [
        zeros.expand(part.shape) if mark is None else mark.labels
        for part, mark in zip(parts, marks, strict=True)
    ]
    if stacked:
        labels = [value.unsqueeze(dim) for value in labels]
    labels = [value for value in labels if value.shape[dim : dim + 1] and value.numel()]
    dims = sorted({d for value in labels for d in varying(value)} | {dim})
    joined = compress(torch.cat([core(value, dims).contiguous() for value in labels], dim))
    if len(varying(joined)) > 1:
        joined = _tie_parts(tape, joined, dim, f"met a tensor of fixed width in {call.name}")
    sources = frozenset[int]().union(*(mark.sources for mark in known))
    zero = all(mark.zero for mark in known)
    tape.put(out, joined.expand(out.shape), sources, zero)
    return out


def _tie_parts(tape: Tape, labels: Tensor, dim: int, reason: str) -> Tensor:
    """Tokens of several origins in one sequence: their widths leave together."""
    first = labels.narrow(dim, 0, 1).expand(labels.shape)
    tape.partition.unify(labels, first, reason)
    return compress(first)


def divide(call: Call) -> Any:
    """chunk, split, tensor_split, unbind: every part of a labelled width loses the same offsets."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    position = 1 if call.name == "unbind" else 2
    dim = call.arg(position, "dim", 0) % x.dim()
    labels = found.labels
    if dim in varying(labels):
        sizes = [1] * len(out) if call.name == "unbind" else [part.shape[dim] for part in out]
        labels = _equal_parts(tape, labels, dim, sizes, call.name)
    start = 0
    for part in out:
        width = 1 if call.name == "unbind" else part.shape[dim]
        piece = labels.narrow(dim, start, width)
        start += width
        piece = piece.squeeze(dim) if call.name == "unbind" else piece
        tape.put(part, piece, found.sources, found.zero)
    return out


def _equal_parts(tape: Tape, labels: Tensor, dim: int, sizes: list[int], name: str) -> Tensor:
    if sizes[0] == 1 or len(set(sizes)) > 1:
        return tape.partition.collapse(labels, dim, f"{name} at fixed places of the width")
    slim = core(labels)
    shape = (*slim.shape[:dim], len(sizes), sizes[0], *slim.shape[dim + 1 :])
    parts = slim.reshape(shape)
    first = parts.narrow(dim, 0, 1).expand(parts.shape)
    tape.partition.unify(parts, first, f"{name} beside a fixed width")
    if name.startswith("split"):  # sizes were given: by an attribute of the module, maybe
        layer = tape.stack[-1] if tape.stack else ""
        vector = core(labels, [dim]).reshape(-1)[: sizes[0]].contiguous()
        for attribute, value in vars(tape.modules[layer]).items():
            if type(value) is int and value == sizes[0]:
                tape.attribute(layer, attribute, vector)
    return labels


def glu(call: Call) -> Any:
    """glu: two equal halves of a width, the second one a gate."""
    tape, out, x = call.tape, call.run(), call.arg(0, "input")
    found = tape.mark(x)
    if found is None:
        return out
    dim = call.arg(1, "dim", -1) % x.dim()
    labels, half = found.labels, out.shape[dim]
    if dim in varying(labels):
        labels = _equal_parts(tape, labels, dim, [half, half], "glu")
    tape.put(out, labels.narrow(dim, 0, half), found.sources, found.zero)
    return out


def take(call: Call) -> Any:
    """x[...]: places of a labelled dimension that are named by number cannot follow a cut."""
    tape, out, (x, index) = call.tape, call.run(), call.args
    found = tape.mark(x)
    if found is None:  # a table of biases by head and offset is read at offsets: heads stay whole
        found = tape.raw_along(x, _taken_whole(x, index))
    if found is None:
        return out
    labels = index_labels(tape, found.labels, index)
    tape.put(out, labels[index], found.sources, found.zero)
    return out


def index_labels(tape: Tape, labels: Tensor, index: Any) -> Tensor:
    """Labels, with every dimension collapsed of which an index takes only a part."""
    for dim, item in _by_dimension(index, labels.dim()):
        if not _is_whole(item, labels.shape[dim]):
            labels = tape.partition.collapse(labels, dim, "sliced at fixed places")
    return labels


def _taken_whole(x: Tensor, index: Any) -> set[int]:
    """Dimensions of which an index takes everything, in order."""
    named = dict(_by_dimension(index, x.dim()))
    return {d for d in range(x.dim()) if d not in named or _is_whole(named[d], x.shape[d])}


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
    labels = tape.partition.collapse(found.labels, dim, "sliced at fixed places")
    index = labels.narrow(dim, 0, 1)
    labels = index.squeeze(dim) if out.dim() < x.dim() else index.expand(out.shape)
    tape.put(out, labels, found.sources, found.zero)
    return out


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


def pad(call: Call) -> Any:
    """pad: what is added along a labelled dimension is of fixed width."""
    tape, out, (x, found) = call.tape, call.run(), moved(call)
    if found is None:
        return out
    amounts = list(call.arg(1, "pad"))
    touched = {x.dim() - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    labels, mode, value = found.labels, call.arg(2, "mode", "constant"), call.arg(3, "value", 0)
    dims = varying(labels)
    if mode == "constant" and touched & set(dims):
        slim = core(labels)
        low = [
            amounts[2 * (x.dim() - 1 - d)] if d in dims and d in touched else 0
            for d in range(x.dim())
        ]
        shape = [out.shape[d] if d in dims else 1 for d in range(x.dim())]
        labels = torch.zeros(shape, dtype=torch.int64)
        labels[tuple(slice(a, a + n) for a, n in zip(low, slim.shape, strict=True))] = slim
    else:
        for d in touched:
            labels = tape.partition.collapse(labels, d, f"padded by {mode}")
        labels = core(labels)
    zero = found.zero and (mode != "constant" or not value)
    tape.put(out, labels.expand(out.shape), found.sources, zero)
    return out


def assign(call: Call) -> Any:
    """x[...] = y and copy_: the written part and what is written leave together."""
    tape, target = call.tape, call.args[0]
    index, value = call.args[1:] if call.name == "setitem" else (..., call.args[1])
    reason = "written in place into a tensor of fixed width"
    old, new = tape.mark(target), tape.mark(value)
    call.run()
    if old is not None:
        labels = index_labels(tape, old.labels, index)[index]
        if new is not None:
            tape.partition.unify(labels, new.labels.expand(labels.shape), reason)
        elif isinstance(value, Tensor):
            for d in varying(labels):
                own = d - labels.dim() + value.dim()
                if own >= 0 and value.shape[own] > 1:
                    labels = tape.partition.collapse(labels, d, reason)
        sources = old.sources | (new.sources if new is not None else tape.unscaled(labels))
        tape.put(target, old.labels, sources, old.zero and new is not None and new.zero)
    elif new is not None:
        tape.partition.fix(new.labels, reason)
    return target if call.name == "copy" else None


def index_add(call: Call) -> Any:
    """index_add: parts of the source are added to those parts of the target that an index names."""
    tape, target = call.tape, call.arg(0, "input")
    dim, source = call.arg(1, "dim") % target.dim(), call.arg(3, "source")
    operands = [(target, tape.mark(target)), (source, tape.mark(source))]
    out = call.run()
    marks = [mark for _, mark in operands if mark is not None]
    if not marks:
        return out
    if not source.shape[dim]:
        tape.fix((target, source), "added to nothing by the example inputs")
        return out
    met = []
    for value, mark in operands:
        labels = tape.labels(value) if mark is None else mark.labels
        labels = tape.partition.collapse(labels, dim, "index_add along the width")
        met.append(labels.narrow(dim, 0, 1))
    joined = tape.partition.unify(met[0], met[1], "met a tensor of fixed width in index_add")
    sources = frozenset[int]().union(*(mark.sources for mark in marks))
    zero = len(marks) == 2 and all(mark.zero for mark in marks)
    tape.put(out, joined.expand(out.shape), sources, zero)
    return out


MOVEMENT = {
    **dict.fromkeys(RESHAPES.split(), reshape),
    **dict.fromkeys(FREE.split(), free),
    **dict.fromkeys(["cat", "stack"], join),
    **dict.fromkeys(["chunk", "split", "tensor_split", "unbind", "split_with_sizes"], divide),
    **dict.fromkeys(["narrow", "select", "index_select"], take_along),
    **dict.fromkeys(["roll", "flip"], turn),
    "getitem": take,
    "setitem": assign,
    "copy": assign,
    "index_add": index_add,
    "glu": glu,
    "pad": pad,
}
