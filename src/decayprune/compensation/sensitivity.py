"""How much a model's outputs change if a structure is replaced by its mean, to first order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from decayprune.compensation.calibration import Calibration, on_device
from decayprune.compensation.consumers import Consumer, by_structure
from decayprune.compensation.watched import watched
from decayprune.structures.example import ExampleInputs, arguments, quiet, returned
from decayprune.structures.ranks import averaged
from decayprune.structures.structure_map import StructureMap

DRAWS = 2
"""Random directions in the outputs of each batch."""


def sensitivity(
    model: nn.Module,
    structures: StructureMap,
    batches: Iterable[ExampleInputs],
    read: Calibration,
) -> Tensor:
    """Root of the summed squares of the outputs' derivative by a gate on each structure.

    The gate ``a`` makes of what the consumers read of a structure ``mean + a (x - mean)``: at 1 it
    is there, at 0 its mean is. Directions of random signs in the outputs give, in expectation, the
    squared norm of the whole derivative with one backward pass each. Labels are not needed: what
    the loss makes of the outputs is left out.

    Source: the Gauss-Newton diagonal of a gate, as in Fisher pruning (Theis et al., arXiv
    1801.05787), by Hutchinson's estimator; of the outputs instead of the loss, and about the mean,
    ours.

    Args:
        model: Nothing of it changes.
        structures: Of the model.
        batches: As for :func:`calibration.calibrate`.
        read: What it found on them.

    Returns:
        Shape ``(S,)``, float64; 0 for what no consumer has read.

    Raises:
        ValueError: The outputs of the model have no derivative.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    total = torch.zeros(structures.num_structures, dtype=torch.float64, device="cpu")
    device = next(model.parameters()).device
    with quiet(model), _differentiable(model), _gated(model, read) as gates:
        for batch in batches:
            args, kwargs = arguments(on_device(device, batch))
            found = [out for out in returned(model(*args, **kwargs)) if out.requires_grad]
            if not found:
                raise _underivable("nothing of it has a derivative")
            for draw in range(DRAWS):
                drawn, last = _along_random_signs(found, generator), draw == DRAWS - 1
                slopes = _slopes(drawn, gates, last=last)
                felt = zip(read.readers, slopes, strict=True)
                reached = ((reader, slope) for reader, slope in felt if slope is not None)
                total += by_structure(reached, len(total)).square()
    return averaged(total).sqrt()


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """With gradients, which cuDNN has none of for recurrent layers in evaluation mode."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _underivable(why: object) -> ValueError:
    return ValueError(
        "importance='sensitivity', the default with calibrate=, differentiates what the model "
        f"returns in evaluation mode, and that failed: {why}. Rank by what layers read instead, "
        "which needs no derivative: importance='variance'."
    )


def _slopes(drawn: Tensor, gates: Sequence[Tensor], *, last: bool) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(drawn, gates, retain_graph=not last, allow_unused=True)
    except RuntimeError as error:  # an operator without a derivative, or no memory for it
        raise _underivable(error) from error


@contextmanager
def _gated(model: nn.Module, read: Calibration) -> Iterator[list[Tensor]]:
    """Gates, all 1, on what each consumer reads."""
    gates = {
        reader.name: torch.ones(
            len(reader.structure), device=reader.weight.device, requires_grad=True
        )
        for reader in read.readers
    }

    def gated(reader: Consumer, x: Tensor) -> Tensor:
        shape = (-1, *[1] * reader.spatial)
        centre = read.moments[reader.name].mean.to(x).view(shape)
        return centre + gates[reader.name].to(x.dtype).view(shape) * (x - centre)

    with watched(model, read.readers, gated):
        yield [*gates.values()]


def _along_random_signs(found: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Inner product of the outputs, each of norm 1 per value, and random signs."""
    parts = []
    for out in found:
        signs = torch.randint(2, out.shape, generator=generator, device="cpu") * 2 - 1
        scale = out.detach().square().mean().sqrt().clamp(min=torch.finfo(out.dtype).tiny)
        parts.append((out * signs.to(out)).sum() / scale)
    return torch.stack(parts).sum()
