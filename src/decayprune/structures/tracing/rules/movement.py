"""Rules for data movement: it need not be understood, it is executed on the labels.

A reshape that spreads a width over two dimensions is remembered; who reads it decides which of the
two gives way. Calls that name places of a width are in
:mod:`~decayprune.structures.tracing.rules.places`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.structures.exact.swap import is_window_attention
from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import compress, core, varying
from decayprune.structures.tracing.marks import Mark
from decayprune.structures.tracing.rules.elementwise import SAME, unary
from decayprune.structures.tracing.rules.places import PLACES, index_labels, moved
from decayprune.structures.tracing.sizes import rows
from decayprune.structures.tracing.tape import Tape

RESHAPES = "reshape view flatten unflatten view_as ravel reshape_as"
FREE = (
    "permute transpose t get:T get:mT get:H movedim squeeze unsqueeze expand expand_as repeat tile "
    "broadcast_to repeat_interleave adjoint pixel_unshuffle atleast_1d "
    "atleast_2d atleast_3d"
)


def of_parameters(rule: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """A movement that moves parameters and buffers too: of those it is told what lies where."""

    def moves(call: Call) -> Any:
        x = call.args[0] if call.args else next(iter(call.tensors()), None)
        view = call.tape.view(x)
        if view is None:
            return rule(call)
        out = call.run()
        kwargs = {k: v for k, v in call.kwargs.items() if v is not x}
        outs = list(tensors_in(out))
        if call.name in ("view", "view_as"):
            # Places are kept expanded, and what is expanded is not always to be flattened.
            same = out.numel() == view.places[0].numel()  # else: a view as another dtype
            views = view.moved(lambda places: places.reshape(out.shape)) if same else []
            for moved in views:
                call.tape.put_view(out, moved)
        elif isinstance(x, Tensor) and all(part.numel() for part in outs):
            views = view.moved(lambda places: call.func(places, *call.args[1:], **kwargs))
            for part, moved in zip(outs, views, strict=True):
                call.tape.put_view(part, moved)
        return out

    return moves


def kept(call: Call) -> Any:
    """The same values in the same places, maybe in another dtype: of a parameter the same view."""
    view = call.tape.view(call.args[0]) if call.args else None
    if view is None:
        return unary(call)
    out = call.run()
    call.tape.put_view(out, view)
    return out


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
    result = call.func(found.labels, *call.args[1:], **kwargs)
    if call.name in ("expand", "broadcast_to"):
        for d, size in _named_sizes(call, out).items():
            call.tape.readings.read(size, result, d)
    return _spread(call, out, result, found)


def reshape(call: Call) -> Any:
    """view, flatten ...: remembered where it spreads a width over several dimensions."""
    out, (_, found) = call.run(), moved(call)
    if found is None:
        return out
    if out.numel() != found.labels.numel():  # view(dtype): other elements
        call.tape.partition.fix(found.labels, "reinterpreted as another dtype")
        return out
    labels = compress(found.labels.reshape(out.shape))
    dims, named = varying(labels), _named_sizes(call, out)
    read = {d for d, size in named.items() if call.tape.readings.read(size, labels, d)}
    if len(dims) == 1 and dims[0] in named:
        _as_wide_as(call.tape, named[dims[0]], labels, dims[0])
    if len(dims) > 1:
        call.tape.matrices.append(core(labels))
        _unflattened(call.tape, labels, dims)
    elif dims and dims[0] not in read and named.get(dims[0], -1) != -1:
        call.tape.passes(core(labels).reshape(-1))
    call.tape.put(out, labels, found.sources, found.zero)
    return out


def _as_wide_as(tape: Tape, size: int, labels: Tensor, dim: int) -> None:
    """A width that is told that of another activation (``y.view(*x.shape)``) leaves with it."""
    if is_window_attention(tape.modules[tape.stack[-1] if tape.stack else ""]):
        return  # what becomes of it tells them apart
    of, factor = tape.readings.extent(size) or (None, None)
    if of is None or factor != 1 or of.shape != (own := rows(labels, dim)).shape:
        return
    if not torch.isin(own, of).any():  # its own, in another order: there are as many anyway
        tape.partition.unify(own, of, "is reshaped to as many channels as one that stays whole")


def _unflattened(tape: Tape, labels: Tensor, dims: list[int]) -> None:
    """nn.Unflatten names the maps that it makes of a width: so many as stay."""
    layer = tape.stack[-1] if tape.stack else ""
    module, count = tape.modules[layer], labels.shape[dims[0]]
    if isinstance(module, nn.Unflatten) and tuple(module.unflattened_size)[:1] == (count,):
        maps = core(labels, dims[:1]).reshape(-1)
        tape.attributes.append((layer, "unflattened_size.0", maps, 1))


def _named_sizes(call: Call, out: Tensor) -> dict[int, int]:
    """Sizes that a call names, by the dimension of its result."""
    named: list[Any] = []
    for value in (*call.args[1:], *call.kwargs.values()):
        named += value if isinstance(value, (tuple, list)) else [value]
    first = 0
    if call.name == "unflatten":
        first = named.pop(0) if call.args[1:] else call.kwargs["dim"]
        first %= call.args[0].dim()
    elif len(named) != out.dim():
        return {}
    return {first + i: size for i, size in enumerate(named) if isinstance(size, int)}


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
    zeros = torch.zeros((), dtype=torch.int64, device="cpu")
    labels = [
        zeros.expand(part.shape) if mark is None else mark.labels
        for part, mark in zip(parts, marks, strict=True)
    ]
    if stacked:
        labels = [value.unsqueeze(dim) for value in labels]
    labels = [value for value in labels if value.shape[dim : dim + 1] and value.numel()]
    joined = _joined(labels, dim)
    if len(varying(joined)) > 1:
        joined = _tie_parts(tape, joined, dim, f"meets channels that stay in {call.name}")
    sources = frozenset[int]().union(*(mark.sources for mark in known))
    zero = all(mark.zero for mark in known)
    tape.put(out, core(joined).expand(out.shape), sources, zero)
    return out


def _joined(labels: list[Tensor], dim: int) -> Tensor:
    """Labels one behind the other; of parts in which nothing varies along it, one index each."""
    dims = sorted({d for value in labels for d in varying(value)} | {dim})
    tokens = [d for d in dims if d != dim]
    if tokens and not any(dim in varying(value) for value in labels):
        # Ten thousand tokens beside a class token: each of them says the same.
        joined = compress(torch.cat([core(value, tokens) for value in labels], dim))
        if varying(joined) != [dim]:
            return joined
    return compress(torch.cat([core(value, dims).contiguous() for value in labels], dim))


def _tie_parts(tape: Tape, labels: Tensor, dim: int, reason: str) -> Tensor:
    """Tokens of several origins in one sequence: their widths leave together."""
    first = labels.narrow(dim, 0, 1).expand(labels.shape)
    tape.partition.unify(labels, first, reason)
    return compress(first)


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
        labels = torch.zeros(shape, dtype=torch.int64, device="cpu")
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
        # Indexing by a tensor copies the labels, however little varies in them.
        labels = compress(index_labels(tape, old.labels, index)[index])
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
    joined = tape.partition.unify(met[0], met[1], "meets channels that stay in index_add")
    sources = frozenset[int]().union(*(mark.sources for mark in marks))
    zero = len(marks) == 2 and all(mark.zero for mark in marks)
    tape.put(out, joined.expand(out.shape), sources, zero)
    return out


_MOVES = {
    **PLACES,
    **dict.fromkeys(RESHAPES.split(), reshape),
    **dict.fromkeys(FREE.split(), free),
}
MOVEMENT = {
    **{name: of_parameters(rule) for name, rule in _MOVES.items()},
    **dict.fromkeys(SAME, kept),
    **dict.fromkeys(["cat", "stack"], join),
    "setitem": assign,
    "copy": assign,
    "index_add": index_add,
    "pad": pad,
}
