"""Weights that hide nothing: a twin whose zeros and near-zeros are drawn anew.

A head that starts at zero, a gate of 1e-6 in front of a whole branch, a normaliser without shift:
with such weights a wrong cut changes no output, and the comparison would prove nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decayprune.structures.twin import own_storage

_FAINT = 1e-3  # root mean square below which a tensor hides what it multiplies
_ENOUGH = 256  # values of a tensor that tell it


@torch.no_grad()
def reveal_(copy: nn.Module, seed: int = 0) -> None:
    """Draw the faint and the constant parameters and statistics of a twin anew.

    Args:
        copy: A twin, changed in place; its parameters get storage of their own where they change.
        seed: Of the draws; the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in copy.modules():
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() > 1 and _hides(parameter, norm):
                own_storage([parameter])
                parameter.copy_(_draw(parameter, name, generator))
        if not norm:
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.numel() > 1 and _constant(buffer):
                buffer.copy_(_draw(buffer, name, generator))


def _hides(parameter: Tensor, norm: bool) -> bool:
    if not parameter.is_floating_point() or parameter.device.type == "meta":
        return False
    # A few of its values tell, and what is drawn anew without need hides nothing either.
    values = parameter.detach().reshape(-1)
    values = values[:: values.numel() // _ENOUGH + 1]
    faint = float(torch.linalg.vector_norm(values)) < _FAINT * values.numel() ** 0.5
    return faint or (norm and _constant(parameter))


def _constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _draw(like: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Ordinary values for a tensor of that shape and name."""
    shape = like.shape
    if like.dim() > 1:
        return torch.randn(shape, generator=generator, device="cpu").mul(like[0].numel() ** -0.5)
    if any(word in name for word in ("weight", "gamma", "scale", "var")):
        return torch.rand(shape, generator=generator, device="cpu").add(0.5)
    return torch.randn(shape, generator=generator, device="cpu").mul(0.1)
