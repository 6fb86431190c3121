"""How much of a difference rounding alone makes, measured on the model itself.

A cut adds up what is left in another order. What that does to the outputs depends on the model: a
deep one, or one that divides small differences, multiplies it by thousands. So where outputs
differ by more than is usual, weights are moved by a unit of rounding, and the outputs watched.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.twin import own_storage, twin

_MARGIN = 8.0  # of the cut's rounding over that of one moved weight in each place
_MOST = 100.0, 0.1  # times the usual, and at all: what is beyond could be a mistake
_TRIES = 2


def measured(
    model: nn.Module, example_inputs: ExampleInputs, usual: float, *, training: bool = False
) -> float:
    """Largest relative difference that rounding makes in this model, within bounds.

    Args:
        model: Left as it is; a twin is moved.
        example_inputs: What to run it on.
        usual: What rounding makes as a rule.
        training: Run it in training mode.

    Returns:
        At least the usual, at most a hundred times that.
    """
    copy = twin(model)
    own_storage(list(copy.parameters()))
    before = outputs(copy, example_inputs, training=training)
    kept = [parameter.detach().clone() for parameter in copy.parameters()]
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for _ in range(_TRIES):
        for parameter, values in zip(copy.parameters(), kept, strict=True):
            _move(parameter, values, generator)
        after = outputs(copy, example_inputs, training=training)
        largest = max(largest, *(_apart(a, b) for a, b in zip(before, after, strict=True)))
    return min(max(usual, _MARGIN * largest), max(usual, min(_MOST[0] * usual, _MOST[1])))


@torch.no_grad()
def _move(parameter: Tensor, values: Tensor, generator: torch.Generator) -> None:
    """Each weight up or down by a unit of rounding."""
    if not parameter.is_floating_point():
        return
    signs = (
        torch.randint(2, values.shape, generator=generator, device="cpu").to(values.device) * 2 - 1
    )
    parameter.copy_(values * (1 + signs * torch.finfo(values.dtype).eps))


def _apart(before: Tensor, after: Tensor) -> float:
    """Largest difference relative to the largest value, of what is finite in both."""
    finite = before.isfinite() & after.isfinite()
    a, b = before[finite].double(), after[finite].double()
    if not a.numel() or not bool(a.any()):
        return 0.0
    return float((a - b).abs().max() / a.abs().max())
