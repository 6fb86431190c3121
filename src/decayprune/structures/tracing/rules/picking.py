"""Rules for what picks by number: gather and scatter, sorting, the largest few.

Along the dimension that is picked from, the numbers are of this example, so that a width along it
stays whole. Along all others every channel goes its own way, if the numbers are the same for all
channels or were found channel by channel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import core, varying
from decayprune.structures.tracing.rules.elementwise import words
from decayprune.structures.tracing.tape import Tape

_PICKED = "places of it are picked by numbers"


def gather(call: Call) -> Any:
    """gather, take_along_dim: elements along a dimension, by an index of the same shape."""
    tape, x = call.tape, call.arg(0, "input")
    if call.name == "gather":
        dim, index = call.arg(1, "dim"), call.arg(2, "index")
    else:
        index, dim = call.arg(1, "indices"), call.arg(2, "dim")
    found, out = tape.mark(x), call.run()
    if found is None or dim is None or x.dim() != index.dim():
        tape.fix((x, index), _PICKED)
        return out
    dim %= x.dim()
    labels = tape.partition.collapse(found.labels, dim, _PICKED)
    labels = _beside(tape, labels, x, index, dim).narrow(dim, 0, 1)
    tape.put(out, labels.expand(out.shape), found.sources, found.zero)
    return out


def _beside(tape: Tape, labels: Tensor, x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Labels of what an index picks, where it may differ along the width itself."""
    for d in varying(labels):
        if index.shape[d] not in (1, x.shape[d]):
            labels = tape.partition.collapse(labels, d, _PICKED)
    own = tape.mark(index)
    if own is not None:  # found channel by channel
        theirs = tape.partition.collapse(own.labels, dim, _PICKED).narrow(dim, 0, 1)
        mine = labels.narrow(dim, 0, 1)
        theirs = theirs.expand(mine.shape)
        labels = tape.partition.unify(mine, theirs, "meets an index of fixed width")
        return labels.expand(x.shape)
    for d in varying(labels):
        if not _constant(index, d):
            labels = tape.partition.collapse(labels, d, "meets an index of fixed width")
    return labels


def _constant(value: Tensor, dim: int) -> bool:
    """Whether a tensor repeats itself along a dimension."""
    if value.shape[dim] <= 1 or value.stride(dim) == 0:
        return True
    return bool((value == value.narrow(dim, 0, 1)).all())


def scatter(call: Call) -> Any:
    """scatter, scatter_add, scatter_reduce: elements of a source go to places of a target."""
    tape, target = call.tape, call.arg(0, "input")
    dim, index = call.arg(1, "dim") % target.dim(), call.arg(2, "index")
    source = call.arg(3, "src", call.kwargs.get("value"))
    source = call.kwargs.get("source", source)
    operands = [value for value in (target, source) if isinstance(value, Tensor)]
    marks = [tape.mark(value) for value in operands]
    labels = [tape.labels(value) for value in operands]
    out = call.run()
    if all(mark is None for mark in marks):
        tape.fix([index], _PICKED)
        return out
    met = []
    for value, own in zip(operands, labels, strict=True):
        own = tape.partition.collapse(own, dim, _PICKED)
        met.append(_beside(tape, own, value, index, dim).narrow(dim, 0, 1))
    joined = met[0]
    if len(met) == 2:
        if met[0].shape != met[1].shape:
            tape.fix(operands, _PICKED)
            return out
        reason = f"meets channels that stay in {call.name}"
        joined = tape.partition.unify(met[0], met[1], reason)
    found = [mark for mark in marks if mark is not None]
    sources = frozenset[int]().union(*(mark.sources for mark in found))
    zero = len(found) == len(operands) and all(mark.zero for mark in found)
    tape.put(out, joined.expand(out.shape), sources, zero and (len(operands) == 2 or not source))
    return out


_DIM = {"topk": 2, "kthvalue": 2}
_FIRST = {"msort": 0}


def ordered(call: Call) -> Any:
    """sort, topk, kthvalue, cummax ...: values in another order, and where they were."""
    tape, x = call.tape, call.args[0]
    found, out = tape.mark(x), call.run()
    if found is None:
        return out
    default = _FIRST.get(call.name, -1)
    dim = call.arg(_DIM.get(call.name, 1), "dim", default)
    dim = (default if isinstance(dim, bool) else dim) % x.dim()
    labels = tape.partition.collapse(found.labels, dim, f"{call.name} over the width")
    labels = core(labels).narrow(dim, 0, 1)
    for value in tensors_in(out):
        here = labels if value.dim() == x.dim() else labels.squeeze(dim)
        if value.is_floating_point():
            tape.put(value, here.expand(value.shape), found.sources, found.zero)
        else:
            tape.put(value, here.expand(value.shape), tape.unscaled(labels), False)
    return out


PICKING = {
    **dict.fromkeys(["gather", "take_along_dim"], gather),
    **dict.fromkeys(["scatter", "scatter_add", "scatter_reduce"], scatter),
    **dict.fromkeys(words("sort argsort msort topk kthvalue cummax cummin mode"), ordered),
}
