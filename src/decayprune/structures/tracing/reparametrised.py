"""Weights that are computed from parameters before every call.

These are weight norm, spectral norm and weight standardisation.

Each index of such a weight is an index of its parameters, so that it leaves exactly:

- ``weight_norm``: ``w = g v / ||v||``, a norm per index of one dimension. Along it ``g`` carries;
  ``v`` is cut along and never scaled, for its length counts for nothing and a ``v`` of zeros is no
  direction. Along the others indices of zeros add nothing to the norms.
- ``spectral_norm``: ``w = W / (u' W v)``. Rows and columns of zeros add nothing, whatever stands in
  ``u`` and ``v``, and the power method keeps it so.
- standardisation: ``w = g (v - mean) / deviation``, per filter. Filters are cut as under a weight
  norm; without a ``g`` nothing in the layer scales them, but a filter of zeros is one of zeros.
  Columns of zeros are *not* zeros afterwards, but minus the mean: what they read has to be 0 by
  itself, and whatever makes it has to carry. They shrink all the same, so that the statistics get
  to what the cut layer computes (:mod:`decayprune.structures.exact.standardised`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from decayprune.structures.exact.standardised import standardisation


@dataclass(frozen=True, eq=False)
class Parts:
    """What a weight is computed from.

    Attributes:
        whole: The parameter of the weight's own shape.
        dim: The dimension of which each index has a norm of its own, or that ``left`` runs along.
        lengths: Its lengths along it (weight norm), or None.
        left: The left singular vector (spectral norm), one entry per index of :attr:`dim`.
        right: The right one, one entry for all others together.
        centred: Whether a mean is subtracted, so that columns of zeros are none afterwards.
    """

    whole: Tensor
    dim: int
    lengths: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None
    centred: bool = False

    def tensors(self) -> list[Tensor]:
        """All of them."""
        parts = (self.whole, self.lengths, self.left, self.right)
        return [part for part in parts if part is not None]

    def scales(self, dim: int) -> bool:
        """Whether scaling what lies along a dimension scales the weight, or its share of it."""
        return not self.centred or (dim % self.whole.dim() == self.dim and self.lengths is not None)

    def moves_zeros(self, dim: int) -> bool:
        """Whether the gradient of what is computed reaches zeros along a dimension."""
        return self.left is not None or not self.scales(dim)

    def along(self, dim: int, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Vectors of the power method that a dimension of the weight runs along, with labels.

        Args:
            dim: Dimension of the weight.
            labels: The labels along it, shape ``(width,)``.
        """
        if self.left is None or self.right is None:
            return
        if dim == self.dim:
            yield self.left, labels
            return
        shape = self.whole.shape
        rest = [d for d in range(len(shape)) if d != self.dim]
        place = rest.index(dim)
        outer, inner = rest[:place], rest[place + 1 :]
        inside = labels.repeat_interleave(prod(shape[d] for d in inner))
        yield self.right, inside.repeat(prod(shape[d] for d in outer))


def parts_of(module: nn.Module) -> Parts | None:
    """What the ``weight`` of a module is computed from; None if it is not, or in an unknown way.

    Args:
        module: Any layer.
    """
    if parametrize.is_parametrized(module, "weight"):
        return _parametrised(module)
    for hook in module._forward_pre_hooks.values():
        if getattr(hook, "name", None) != "weight":
            continue
        if isinstance(hook, WeightNorm):
            return Parts(_own(module, "weight_v"), hook.dim, _own(module, "weight_g"))
        if isinstance(hook, SpectralNorm):
            left, right = _own(module, "weight_u"), _own(module, "weight_v")
            return Parts(_own(module, "weight_orig"), hook.dim, None, left, right)
    if (way := standardisation(module)) is not None:
        gain = None if way.gain_name is None else _own(module, way.gain_name)
        return Parts(_own(module, "weight"), 0, gain, centred=True)
    return None


def _parametrised(module: nn.Module) -> Parts | None:
    steps: Any = module.parametrizations["weight"]  # type: ignore[index]
    if len(steps) != 1:
        return None
    step = steps[0]
    if isinstance(step, _WeightNorm):
        return Parts(steps.original1, step.dim, steps.original0)
    if isinstance(step, _SpectralNorm) and steps.original.dim() > 1:
        return Parts(steps.original, step.dim, None, step._u, step._v)
    return None


def _own(module: nn.Module, name: str) -> Tensor:
    found: Tensor = getattr(module, name)
    return found


def computed(module: nn.Module) -> str:
    """Why the computed weight of a module is left alone, and the way out.

    Args:
        module: A layer whose weight is no parameter.
    """
    if parametrize.is_parametrized(module, "weight"):
        steps: Any = module.parametrizations["weight"]  # type: ignore[index]
        kinds = " and ".join(type(step).__name__.lstrip("_") for step in steps)
        return (
            f"its weight is computed by {kinds} (prune without it: "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'))"
        )
    return (
        "produced with a weight that is computed, not a parameter (a layer that holds the computed "
        "weight can be pruned)"
    )


def layer_of(name: str) -> str:
    """Name of the layer that a parameter belongs to, also where it is a part of its weight.

    Args:
        name: Qualified name of the parameter or buffer.
    """
    layer, found, _ = name.partition("parametrizations.")
    return layer.rstrip(".") if found else name.rpartition(".")[0]
