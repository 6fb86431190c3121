"""Weights that hide nothing: a twin whose zeros and near-zeros are drawn anew.

A head that starts at zero, a gate of 1e-6 in front of a whole branch, a normaliser without shift:
with such weights a wrong cut changes no output, and the comparison would prove nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    kind = nn.modules.batchnorm._NormBase
    norms = {name for name, module in copy.named_modules() if isinstance(module, kind)}
    parameters = [(n, p) for n, p in copy.named_parameters() if _has_values(p)]
    buffers = [(n, b) for n, b in copy.named_buffers() if _has_values(b)]
    faint = _faint([parameter for _, parameter in parameters]) + [False] * len(buffers)
    for (name, tensor), hides in zip([*parameters, *buffers], faint, strict=True):
        home, _, leaf = name.rpartition(".")
        if hides or (home in norms and _constant(tensor)):
            tensor.data = _draw(tensor, leaf, generator).to(tensor)


def _has_values(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1 and not tensor.is_meta


def _faint(tensors: Sequence[Tensor]) -> list[bool]:
    """Which tensors hide what they multiply."""
    # A few of their values tell, and what is drawn anew without need hides nothing either.
    flat = [tensor.reshape(-1) for tensor in tensors]
    some = [values[:: values.numel() // _ENOUGH + 1] for values in flat]
    norms = torch._foreach_norm(some) if some else ()
    return [float(n) < _FAINT * v.numel() ** 0.5 for n, v in zip(norms, some, strict=True)]


def _constant(tensor: Tensor) -> bool:
    low, high = tensor.aminmax()
    return bool(low == high)


def _draw(like: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Ordinary values for a tensor of that shape and name."""
    shape = like.shape
    if like.dim() > 1:
        return torch.randn(shape, generator=generator, device="cpu").mul(like[0].numel() ** -0.5)
    if any(word in name for word in ("weight", "gamma", "scale", "var")):
        return torch.rand(shape, generator=generator, device="cpu").add(0.5)
    return torch.randn(shape, generator=generator, device="cpu").mul(0.1)
