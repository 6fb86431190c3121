"""Gated batch norms: one scale in front of weight and bias, without changing the function.

A batch norm computes ``weight * x + bias``; a gated one ``g * (scale * x + b)`` with a trained
``g`` and ``b`` and a constant ``scale``. At ``g = 0`` the whole channel is gone, bias included, so
one number per channel says how much of it there is.

Source: You et al., Gate Decorator, NeurIPS 2019, arXiv 1909.08174. There ``scale`` is 1 and
``b = bias / weight`` is clamped to ten, which changes the function of channels with small weights;
here such channels get another ``scale`` instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decayprune.structures.structure_map import StructureMap
from decayprune.surgery.undo import Undo

_LARGEST_BIAS = 10.0  # |b|, the bound at which the original clamps
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GatedBatchNorm(nn.Module):
    """A batch norm with its gate; it holds the same parameter objects as the norm it stands for.

    Args:
        norm: Its ``weight`` becomes the gate ``g``, its ``bias`` becomes ``b``, in place.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    scale: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        self._norm = [norm]  # in a list: not a submodule, names of parameters stay as they are
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.momentum = norm.eps, norm.momentum
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        with torch.no_grad():
            gate, scale, bias = split(self.weight, self.bias)
            self.register_buffer("scale", scale)
            self.weight.copy_(gate)
            self.bias.copy_(bias)
        self.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """The batch norm, gated."""
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            inputs,
            self.running_mean,
            self.running_var,
            self.weight * self.scale,
            self.weight * self.bias,
            self.training or self.running_mean is None,
            factor,
            self.eps,
        )

    @torch.no_grad()
    def melt(self) -> nn.Module:
        """The norm it stands for, with the gate multiplied in."""
        norm = self._norm[0]
        self.bias.mul_(self.weight)
        self.weight.mul_(self.scale)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(self, name))
        return norm.train(self.training)


def split(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, scale and inner bias with ``gate * scale = weight`` and ``gate * inner = bias``.

    Args:
        weight: Of a batch norm, shape ``(C,)``.
        bias: Likewise.

    Returns:
        The gate (``weight`` itself wherever the inner bias is then at most ten), the scale and the
        inner bias, each ``(C,)``.

    Example:
        >>> split(torch.tensor([2.0, 0.0]), torch.tensor([1.0, -5.0]))
        (tensor([2.0000, 0.5000]), tensor([1., 0.]), tensor([  0.5000, -10.0000]))
    """
    least = bias.abs() / _LARGEST_BIAS
    sign = torch.where(weight < 0, -1.0, 1.0).to(weight.dtype)
    gate = torch.where(weight.abs() >= least, weight, sign * least)
    safe = torch.where(gate == 0, torch.ones_like(gate), gate)
    scale = torch.where(gate == 0, torch.ones_like(gate), weight / safe)
    return gate.clone(), scale, bias / safe


def gate(model: nn.Module, names: list[str]) -> None:
    """Replace batch norms by gated ones.

    Args:
        model: Changed in place.
        names: Which norms.
    """
    for name in names:
        norm = model.get_submodule(name)
        if not isinstance(norm, _NORMS):
            raise TypeError(f"{name!r} is no batch norm but a {type(norm).__name__}.")
        _put(model, name, GatedBatchNorm(norm))


def melt(undo: Undo, model: nn.Module, names: list[str]) -> None:
    """Put the batch norms back, gates multiplied in.

    Args:
        undo: Gets the way back.
        model: Changed in place.
        names: Which norms.
    """
    for name in names:
        gated = model.get_submodule(name)
        if isinstance(gated, GatedBatchNorm):
            undo.keep_values(gated.weight)
            undo.keep_values(gated.bias)
            undo.keep_item(*_place(model, name))
            _put(model, name, gated.melt())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    modules, last = _place(model, name)
    modules[last] = module


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    parent, _, last = name.rpartition(".")
    return model.get_submodule(parent)._modules, last


def gateable(model: nn.Module, structures: StructureMap) -> StructureMap:
    """The structures that gates can hold, with the gates ``g`` as their only carriers.

    Gates of one structure are the norms whose scaling scales it: the norm behind a convolution,
    or all that meet in a residual sum. No grouping by hand is needed.

    Args:
        model: The model.
        structures: Its structures; groups that no gate can hold are refused.
    """
    size = structures.num_structures
    gates = torch.zeros(size + 1, dtype=torch.int64, device="cpu")
    other = torch.zeros(size + 1, dtype=torch.bool, device="cpu")
    weights = set()
    for item in structures.slices:
        owner, _, last = item.name.rpartition(".")
        carried = item.structure[item.carrier]
        if not carried.numel():
            continue
        if type(model.get_submodule(owner)) not in _NORMS:
            other[carried] = True
        elif last == "weight":
            gates[carried] += 1
            weights.add(item.name)
    bare = (other | (gates == 0))[:size]
    reason = "no gate can close it: not every path ends in a batch norm with weight and bias"
    refused = dict.fromkeys(structures.group_of[bare].tolist(), reason)
    kept = structures.without(refused) if refused else structures
    slices = tuple(
        replace(s, carrier=s.carrier & (s.structure >= 0))
        if s.name in weights
        else replace(s, carrier=torch.zeros_like(s.carrier))
        for s in kept.slices
    )
    return replace(kept, slices=slices)


def gated(structures: StructureMap) -> list[str]:
    """Names of the batch norms that hold a gate.

    Args:
        structures: As :func:`gateable` returns them.
    """
    held = (item.name for item in structures.slices if bool(item.carrier.any()))
    return [name.rpartition(".")[0] for name in dict.fromkeys(held)]


def located(
    structures: StructureMap, parameters: Mapping[str, nn.Parameter]
) -> tuple[list[tuple[nn.Parameter, Tensor]], Tensor]:
    """Gates with the structure of each channel (``S``: none); how many each structure has.

    Args:
        structures: Their carriers are the gates.
        parameters: By name.
    """
    size = structures.num_structures
    count = torch.zeros(size + 1, dtype=torch.int64, device="cpu")
    homes = []
    for item in structures.slices:
        if bool(item.carrier.any()):
            labels = torch.where(item.carrier, item.structure, size)
            count += torch.bincount(labels, minlength=size + 1)
            gate = parameters[item.name]
            homes.append((gate, labels.to(gate.device)))
    return homes, count[:size]


def forget_moments(
    undo: Undo, model: nn.Module, norms: Sequence[str], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Drop optimizer state of gates and inner biases: it belongs to other coordinates.

    Args:
        undo: Gets the way back.
        model: Holds the norms.
        norms: Their names.
        optimizers: Hold the state.
    """
    for name in norms:
        for parameter in model.get_submodule(name).parameters(recurse=False):
            for optimizer in optimizers:
                undo.keep_item(optimizer.state, parameter)
                optimizer.state.pop(parameter, None)
