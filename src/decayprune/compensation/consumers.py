"""The layers that read structures, and what they read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from decayprune.structures.structure_map import FIXED, StructureMap
from decayprune.structures.tracing.reparametrised import layer_of, parts_of


class Consumer(NamedTuple):
    """A layer that reads structures, one input channel after the other.

    Attributes:
        name: Of the module.
        layer: Linear (GPT-2's too), recurrent, or a convolution that is not grouped.
        structure: Structure of each input channel, -1 where it never leaves, ``(inputs,)``.
        outputs: Structure of each output channel, ``(outputs,)``.
        branch: Structure of the residual branch that it lies in, -1 if in none.
    """

    name: str
    layer: nn.Linear | _ConvNd | nn.RNNBase
    structure: Tensor
    outputs: Tensor
    branch: int = FIXED

    @property
    def writable(self) -> bool:
        """Whether its columns can take over: they are all, and no other parameter is its weight."""
        return not isinstance(self.layer, nn.RNNBase) and parts_of(self.layer) is None

    @property
    def weight(self) -> Tensor:
        """Its weight, ``(outputs, inputs, ...)``; to write into it is to write into the layer's.

        Of a weight that is computed (a weight norm), the parameter of its shape.
        """
        return self.turned(_held(self.layer).detach())

    def turned(self, weight: Tensor) -> Tensor:
        """A tensor like its weight with outputs first, a view."""
        return weight if _inputs_of(self.layer) == 1 else weight.transpose(0, 1)

    @property
    def offset(self) -> bool:
        """Whether its bias can do the work of an input that never varies.

        That of a transposed convolution cannot: by its stride outputs see parts of the kernel.
        """
        transposed = isinstance(self.layer, _ConvNd) and self.layer.transposed
        return self.layer.bias is not None and not transposed

    @property
    def spatial(self) -> int:
        """Dimensions of a position that it reads channels at: none of a linear layer."""
        return len(self.layer.kernel_size) if isinstance(self.layer, _ConvNd) else 0

    def rows(self, inputs: Tensor) -> Tensor:
        """What it reads, as one vector of channels per position, shape ``(n, channels)``."""
        if not isinstance(self.layer, _ConvNd):
            return inputs.flatten(0, -2) if inputs.ndim > 1 else inputs[None]
        batch = inputs if inputs.ndim == self.spatial + 2 else inputs[None]
        return batch.movedim(1, -1).flatten(0, -2)


def consumers(model: nn.Module, structures: StructureMap) -> list[Consumer]:
    """Layers whose inputs leave with structures, and whose columns could take others over.

    A grouped convolution reads other channels in every group, a weight that is used by hand has no
    inputs of its own to look at: they are left out.
    """
    found = []
    produced = {(s.name, s.dim): s.structure for s in structures.slices if s.role != "gate"}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for item in (each for each in structures.slices if each.role == "column"):
        name = layer_of(item.name)
        layer = model.get_submodule(name)
        if not _reads_channels(layer) or item.dim != _inputs_of(layer):
            continue
        weight = _held(layer)
        if parameters.get(item.name) is weight:
            other = 1 - item.dim
            fixed = torch.full((weight.shape[other],), FIXED, device="cpu")
            around = (b.structure for b in structures.branches if b.holds(name))
            outputs = produced.get((item.name, other), fixed)
            found.append(Consumer(name, layer, item.structure, outputs, next(around, FIXED)))
    return found


def by_structure(read: Iterable[tuple[Consumer, Tensor]], size: int) -> Tensor:
    """Sums over what is read of each structure.

    Args:
        read: Layers, and a value of each of their input channels, ``(inputs,)``.
        size: Number of structures, ``S``.

    Returns:
        Shape ``(S,)``, float64, on the CPU; 0 for what nobody reads.
    """
    total = torch.zeros(size, dtype=torch.float64, device="cpu")
    for reader, values in read:
        mine = reader.structure >= 0
        total.index_add_(0, reader.structure[mine], values.double().cpu()[mine])
    return total


def _reads_channels(layer: nn.Module) -> TypeGuard[nn.Linear | _ConvNd | nn.RNNBase]:
    if isinstance(layer, _ConvNd):
        return layer.groups == 1
    return isinstance(layer, (nn.Linear, nn.RNNBase)) or _is_of_gpt2(layer)


def _held(layer: nn.Module) -> Tensor:
    """The parameter that is its weight, or of its shape.

    To ask for a weight that is computed can change it.
    """
    parts = parts_of(layer)
    if parts is not None:
        return parts.whole
    return layer.get_parameter("weight_ih_l0" if isinstance(layer, nn.RNNBase) else "weight")


def _inputs_of(layer: nn.Module) -> int:
    """The dimension of its weight that reads."""
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    return 0 if transposed or _is_of_gpt2(layer) else 1


def _is_of_gpt2(layer: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``, a linear layer with a weight (inputs, outputs)."""
    kinds = ((kind.__module__, kind.__name__) for kind in type(layer).__mro__)
    return ("transformers.pytorch_utils", "Conv1D") in kinds
