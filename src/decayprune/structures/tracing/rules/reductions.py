"""Rules for what runs along dimensions: pooling, softmax, Fourier transforms, sums.

A dimension that they need whole cannot shrink, except where zeros make no difference to a sum.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call, tensors_in
from decayprune.structures.tracing.labels import core, varying
from decayprune.structures.tracing.rules.elementwise import additive, first, of_values, words

ALONG_DIM = words("softmax log_softmax cumsum cumprod normalize logcumsumexp softmin")
REDUCTIONS = words(
    """
    mean sum amax amin max min std var norm logsumexp argmax argmin any all prod median
    vector_norm linalg_vector_norm count_nonzero std_mean var_mean nansum
    """
)

SUMS = words("sum nansum norm vector_norm linalg_vector_norm")
"""Reductions that do not see zeros."""

POOLS = [
    f"{kind}_pool{n}d{tail}"
    for n in (1, 2, 3)
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp", "fractional_max")
    for tail in ("", "_with_indices")
]
RESIZES = words("interpolate upsample upsample_nearest upsample_bilinear grid_sample")

FOURIER = [
    *(f"fft_{i}{r}fft{n}" for i in ("", "i") for r in ("", "r", "h") for n in ("", "2", "n")),
    "fft_fftshift",
    "fft_ifftshift",
]


def spatial(call: Call) -> Any:
    """Pooling and resizing: every channel by itself, new extent."""
    tape, out, x = call.tape, call.run(), first(call)
    found = tape.mark(x)
    if found is None:
        return out
    if call.name == "grid_sample":
        tape.fix([call.arg(1, "grid")], "used as coordinates")
    digits = [c for c in call.name if c in "123"]
    count = int(digits[-1]) if digits else x.dim() - 2
    labels = found.labels
    for d in range(x.dim() - count, x.dim()):
        labels = tape.partition.collapse(labels, d, f"{call.name} over the channels")
    slim = core(labels)
    for value in tensors_in(out):
        tape.put(value, slim.expand(value.shape), found.sources, found.zero)
    return out


def along_dim(call: Call) -> Any:
    """Softmax and others that need the whole extent of a dimension."""
    tape, x = call.tape, first(call)
    out, found = call.run(), tape.mark(x)
    if found is None:
        return out
    default = 1 if call.name == "normalize" else -1
    dim = call.arg(2 if call.name == "normalize" else 1, "dim", default)
    dim = default if dim is None else dim
    reason = f"{call.name} over the channels"
    labels = found.labels
    if call.name == "normalize" and varying(labels) == [dim % x.dim()] and found.zero:
        tape.consume(found, core(labels).reshape(-1), None)  # a norm does not see zeros
    else:
        labels = tape.partition.collapse(labels, dim % x.dim(), reason)
    if call.name in ("cumsum", "cumprod", "normalize"):
        tape.put(out, labels, found.sources, found.zero)
    else:
        tape.put(out, labels, tape.unscaled(labels), False)
    return out


def fourier(call: Call) -> Any:
    """Fourier transforms: the dimensions they run over are needed whole, channels by themselves."""
    tape, out, x = call.tape, call.run(), first(call)
    found = tape.mark(x)
    if found is None:
        return out
    kind = call.name.removeprefix("fft_")
    shift = kind.endswith("shift")
    default = None if shift or kind[-1] == "n" else [-2, -1] if kind[-1] == "2" else [-1]
    dims = call.arg(1 if shift else 2, "dim", default)
    dims = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    labels = found.labels
    for d in dims:
        labels = tape.partition.collapse(labels, d % x.dim(), f"{call.name} over the width")
    tape.put(out, core(labels).expand(out.shape), found.sources, found.zero)
    return out


def reduction(call: Call) -> Any:
    """mean, sum, max ...: over unlabelled dimensions they go, over a labelled one all is fixed."""
    tape, x = call.tape, first(call)
    second = call.arg(1, "other")
    if isinstance(second, Tensor):
        return additive(call)  # max(x, y)
    found, out = tape.mark(x), call.run()
    if found is None:
        return out
    position = 2 if call.name in ("norm", "vector_norm", "linalg_vector_norm") else 1
    dim = call.arg(position, "dim", call.kwargs.get("axis"))
    if dim is None or dim == () or isinstance(dim, bool):  # x.var(False): no dimension
        dims = list(range(x.dim()))
    else:
        dims = [dim] if isinstance(dim, int) else list(dim)
    labels = found.labels
    gone = sorted({d % x.dim() for d in dims}, reverse=True)
    if call.name in SUMS and found.zero and varying(labels) in [[d] for d in gone]:
        tape.consume(found, core(labels).reshape(-1), None)  # zeros add nothing to a sum
        return out
    for d in gone:
        reason = f"{call.name} over the channels"
        labels = tape.partition.collapse(labels, d, reason)
    kept = next(tensors_in(out)).dim() == x.dim()
    for d in gone:
        labels = labels.narrow(d, 0, 1) if kept else labels.select(d, 0)
    sources, zero = found.sources, found.zero
    if call.name in ("logsumexp", "argmax", "argmin", "any", "all", "count_nonzero"):
        sources, zero = tape.unscaled(labels), False
    for value in tensors_in(out):
        tape.put(value, labels.expand(value.shape), sources, zero)
    return out


REDUCING = {
    **dict.fromkeys(FOURIER, fourier),
    **dict.fromkeys([*POOLS, *RESIZES], of_values(spatial)),
    **dict.fromkeys(ALONG_DIM, of_values(along_dim)),
    **dict.fromkeys(REDUCTIONS, of_values(reduction)),
}
