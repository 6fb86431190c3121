"""What stands in the place of a module whose residual branch was removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Bypass(nn.Module):
    """Hands on the first tensor that it is given, or zeros of its shape; it has no parameters.

    The first module of a branch makes zeros in the shape of the residual stream, whatever that is
    at the time, and the others hand them on. The stream itself is handed to nobody: what is left
    between the modules may write to what it gets (``nn.ReLU(inplace=True)``). The module at the end
    makes zeros anew, for nobody knows what became of the first ones.

    Args:
        replaced: Name of the module's class.
        zero: Zeros instead of the tensor.
        items: Length of the tuple that the module returned; the others of it are None. 0: it
            returned a tensor.
    """

    def __init__(self, replaced: str, *, zero: bool, items: int) -> None:
        super().__init__()
        self.replaced, self.zero, self.items = replaced, zero, items

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Of the arguments of the module that stood here, the first tensor."""
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        value = torch.zeros_like(first) if self.zero else first
        return (value, *(None,) * (self.items - 1)) if self.items else value

    def extra_repr(self) -> str:
        """What it replaced."""
        return f"{self.replaced}, zero={self.zero}"


def put_bypass(model: nn.Module, name: str, *, zero: bool, items: int) -> None:
    """Put a bypass in the place of a module.

    Args:
        model: Changed in place.
        name: Of the module.
        zero: As for :class:`Bypass`.
        items: As for :class:`Bypass`.
    """
    home, _, leaf = name.rpartition(".")
    old = model.get_submodule(name)
    new = Bypass(type(old).__qualname__, zero=zero, items=items)
    if isinstance(old, nn.MultiheadAttention):  # an encoder asks for them
        vars(new).update(batch_first=old.batch_first, in_proj_bias=None)
    model.get_submodule(home)._modules[leaf] = new.train(old.training)
    for module in fused(model):
        # Torch's fused layers would reach past the module for its weights.
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif any(isinstance(part, Bypass) for part in module.modules()):
            vars(module)["activation_relu_or_gelu"] = 0


def fused(model: nn.Module) -> list[nn.Module]:
    """Modules that may compute without calling their parts."""
    kinds = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
    return [module for module in model.modules() if isinstance(module, kinds)]
