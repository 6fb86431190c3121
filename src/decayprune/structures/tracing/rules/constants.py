"""Rules for tensors that a model makes: one value, in a shape that integers name.

The first state of a recurrent cell is zeros of its hidden width. Where that extent is an attribute,
or was read off an activation, it follows the width that it meets.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from decayprune.structures.tracing.call import Call
from decayprune.structures.tracing.labels import along
from decayprune.structures.tracing.tape import Tape


def constant(call: Call) -> Any:
    """zeros, ones, full, empty, and new_zeros and so on of a tensor."""
    tape, out = call.tape, call.run()
    named = list(call.args[1:] if call.name.startswith("new_") else call.args)
    if not named:
        named = [call.kwargs.get("size", call.kwargs.get("shape", ()))]
    sizes = named[0] if isinstance(named[0], (tuple, list)) else named
    if not isinstance(out, Tensor) or len(sizes) != out.dim():
        return out
    for dim in reversed(range(out.dim())):
        labels = _counted(tape, sizes[dim])
        if labels is None:
            continue
        spread = along(labels, dim, out.shape)
        tape.readings.read(sizes[dim], spread, dim)
        tape.put(out, spread, tape.unscaled(labels), call.name.endswith("zeros"))
        break  # along one dimension: no width lies across another one
    return out


def _counted(tape: Tape, size: Any) -> Tensor | None:
    """Labels for an extent: of the width it was read off, or new ones for an attribute."""
    if tape.readings.is_attribute(size) and size.factor == 1:
        return tape.fresh_raw(int(size))
    of, factor = tape.readings.extent(size) or (None, None)
    if of is None or factor != 1 or of.shape[1] != 1:
        return None
    return of[:, 0]


_MADE = ("zeros", "ones", "full", "empty")
CONSTANTS = dict.fromkeys([*_MADE, *(f"new_{name}" for name in _MADE)], constant)
