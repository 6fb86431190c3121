"""Everything about a living model that looking at it must not change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Living:
    """A model as it is now; :meth:`check` says that it still is.

    Args:
        model: Gets gradients, so that there is something to lose.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
                parameter.register_hook(_same)
        # Held, as a DistributedDataParallel does: a dropped one would be made anew.
        self.accumulators = {n: _accumulator(p) for n, p in model.named_parameters()}
        self.values = {n: t.detach().clone() for n, t in tensors(model).items()}
        self.before = self.now()

    def now(self) -> dict[str, Any]:
        found: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
        for name, module in self.model.named_modules():
            found[name, "class"] = type(module)
            found[name, "training"] = module.training
            found[name, "attributes"] = {k: _id(v) for k, v in vars(module).items()}
            found[name, "members"] = {
                k: {key: id(item) for key, item in v.items()}
                for k, v in vars(module).items()
                if isinstance(v, dict)
            }
        for name, tensor in tensors(self.model).items():
            found[name, "tensor"] = id(tensor), tensor.data_ptr(), tensor._version, tensor.shape
            found[name, "flags"] = tensor.requires_grad, tensor.stride(), type(tensor)
            grad = tensor.grad
            found[name, "grad"] = None if grad is None else (id(grad), grad._version)
            found[name, "hooks"] = list(tensor._backward_hooks or ())
        return found

    def check(self) -> None:
        now = self.now()
        assert now.keys() == self.before.keys()
        for key, value in self.before.items():
            assert now[key] == value, key
        for name, parameter in self.model.named_parameters():
            assert _accumulator(parameter) is self.accumulators[name], name
        for name, tensor in tensors(self.model).items():
            torch.testing.assert_close(tensor.detach(), self.values[name], rtol=0, atol=0)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _same(grad: Tensor) -> Tensor:
    return grad


def _id(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, tuple)) else id(value)


def _accumulator(parameter: Tensor) -> Any:
    if not parameter.requires_grad:
        return None
    return parameter.expand_as(parameter).grad_fn.next_functions[0][0]
