"""Inner products of weights and directions, and scaling by row, for all structures in one pass.

DHSPG needs three inner products of every structure in every step of its penalty phase, so nothing
here makes a copy of the weights; one-dimensional tensors (a network has hundreds of them) are
handled as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from decayprune.structures.structure_map import StructureMap
from decayprune.structures.sums import Totals, labelled


class Products(NamedTuple):
    """Inner products of each structure's weights ``x`` and direction ``d``, each ``(S,)``."""

    xx: Tensor
    xd: Tensor
    dd: Tensor
    moved_xx: Tensor
    """``sum(lr * x * x)``: as ``xx``, each slice times its own learning rate."""
    moved_xd: Tensor
    """``sum(lr * x * d)``: how far the step moves the structure against itself."""
    decayed_xx: Tensor
    """``sum(lr * weight_decay * x * x)`` where weight decay is decoupled, else 0."""


class StructureSums:
    """Sums over all slices of the structures of a map.

    Args:
        structures: The structures; at most one dimension of each tensor is cut.
        parameters: Every parameter of the map, by name.
    """

    def __init__(self, structures: StructureMap, parameters: Mapping[str, Tensor]) -> None:
        slices = sorted(labelled(structures), key=lambda item: parameters[item.name].dim() > 1)
        self._size = structures.num_structures
        self._slices = slices
        self._names = [item.name for item in slices]
        self._flat = [i.name for i in slices if parameters[i.name].dim() == 1]
        self._deep = [(i.name, i.dim) for i in slices if parameters[i.name].dim() > 1]
        self._widths = [item.structure.numel() for item in slices]
        device = parameters[self._names[0]].device
        labels = torch.cat([item.structure for item in slices])
        labels = torch.where(labels < 0, self._size, labels)
        self._totals, self._owner = Totals(labels, self._size, device), labels.to(device)
        per_index = [
            float(parameters[n].numel() // w)
            for n, w in zip(self._names, self._widths, strict=True)
        ]
        like = torch.empty(0, dtype=torch.float32, device=device)
        self.numel = self._totals.of(self._spread(per_index, like))
        """Weights of each structure, ``(S,)``."""

    def _spread(self, values: list[float], like: Tensor) -> Tensor:
        widths = torch.tensor(self._widths, device=like.device)
        return torch.repeat_interleave(like.new_tensor(values), widths)

    def products(
        self,
        weights: Mapping[str, Tensor],
        directions: Mapping[str, Tensor],
        rates: Mapping[str, tuple[float, float]],
    ) -> Products:
        """All inner products.

        Args:
            weights: By name.
            directions: By name.
            rates: Learning rate and decoupled weight decay of each tensor.
        """
        parts = []
        if self._flat:
            x = torch.cat([weights[n].detach() for n in self._flat])
            d = torch.cat([directions[n] for n in self._flat])
            parts.append(_row_products(x.unsqueeze(1), d.unsqueeze(1)))
        parts += [
            _row_products(_rows(weights[n].detach(), dim), _rows(directions[n], dim))
            for n, dim in self._deep
        ]
        xx, xd, dd = torch.cat(parts, 1)
        lr = self._spread([rates[n][0] for n in self._names], xx)
        decay = self._spread([rates[n][1] for n in self._names], xx)
        every = torch.stack([xx, xd, dd, lr * xx, lr * xd, lr * decay * xx], 1)
        return Products(*self._totals.of(every).unbind(1))

    @torch.no_grad()
    def shrink_(
        self,
        weights: Mapping[str, Tensor],
        shares: Tensor,
        rates: Mapping[str, tuple[float, float]],
    ) -> None:
        """Multiply the slices of each structure by ``1 - lr * share / (1 - lr * weight_decay)``.

        The divisor makes up for decoupled weight decay, which multiplies the weights next.

        Args:
            weights: By name, changed in place.
            shares: Shape ``(S,)``; structures with 0 stay as they are.
            rates: Learning rate and decoupled weight decay of each tensor.
        """
        padded = torch.cat([shares, shares.new_zeros(1)])[self._owner]
        factor = [rates[n][0] / (1 - rates[n][0] * rates[n][1]) for n in self._names]
        scales = torch.split(1 - self._spread(factor, padded) * padded, self._widths)
        touched = (
            torch.stack([part.max() for part in torch.split(padded, self._widths)]).gt(0).tolist()
        )
        flat = [i for i in range(len(self._flat)) if touched[i]]
        if flat:
            tensors = [weights[self._names[i]] for i in flat]
            torch._foreach_mul_(
                tensors, [scales[i].to(t.dtype) for i, t in zip(flat, tensors, strict=True)]
            )
        for i, (name, dim) in enumerate(self._deep, len(self._flat)):
            if touched[i]:
                shape = [1] * weights[name].dim()
                shape[dim] = -1
                weights[name].mul_(scales[i].to(weights[name].dtype).view(shape))


def _rows(tensor: Tensor, dim: int) -> Tensor:
    moved = tensor if dim == 0 else tensor.movedim(dim, 0)
    # channels_last has its channels innermost: any order of a row's weights will do.
    if moved.dim() == 4 and moved.is_contiguous(memory_format=torch.channels_last):
        moved = moved.permute(0, 2, 3, 1)
    return moved.reshape(moved.shape[0], -1)


def _row_products(x: Tensor, d: Tensor) -> Tensor:
    """``x.x``, ``x.d`` and ``d.d`` of each row, shape ``(3, rows)``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, d = x.to(wide), d.to(wide)
    if x.shape[1] == 1:
        return torch.cat([x * x, x * d, d * d], 1).T
    norms = [torch.linalg.vector_norm(each, dim=1) for each in (x, d)]
    return torch.stack([norms[0].square(), torch.linalg.vecdot(x, d), norms[1].square()])
