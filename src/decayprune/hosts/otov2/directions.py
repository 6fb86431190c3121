"""From gradients to the direction of a step: SGD, heavy ball, Adam and AdamW, over many tensors.

The OTO hosts score and penalise with the *direction* (after weight decay and momentum), not with
the raw gradient, so it has to exist before the weights move. State has the names and meaning of
torch's own optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Variant = Literal["sgd", "adam", "adamw"]
_EPSILON = 1e-8


def defaults_of(
    variant: Variant,
    lr: float,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float | None = None,
) -> dict[str, Any]:
    """Defaults of a parameter group.

    Args:
        variant: ``"sgd"`` (heavy ball with ``momentum``), ``"adam"`` or ``"adamw"``.
        lr: Learning rate.
        momentum: Of SGD.
        dampening: Of SGD's momentum.
        betas: Of Adam and AdamW.
        weight_decay: Added to the gradient; decoupled for AdamW. None: 1e-2 for AdamW, else 0.

    Raises:
        ValueError: A value is out of range.
    """
    if variant not in ("sgd", "adam", "adamw"):
        raise ValueError(f"variant is 'sgd', 'adam' or 'adamw', found {variant!r}.")
    shares = {"momentum": momentum, "dampening": dampening, "betas": max(betas)}
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} lies in [0, 1), found {value!r}.")
    decay = (1e-2 if variant == "adamw" else 0.0) if weight_decay is None else weight_decay
    if decay < 0:
        raise ValueError(f"weight_decay is 0 or more, found {decay!r}.")
    common = {"lr": lr, "weight_decay": decay, "decoupled_weight_decay": variant == "adamw"}
    if variant == "sgd":
        return common | {"momentum": momentum, "dampening": dampening}
    return common | {"betas": tuple(betas)}


def directions(
    groups: Sequence[Mapping[str, Any]],
    state: MutableMapping[Any, Any],
) -> dict[nn.Parameter, Tensor]:
    """Direction of every parameter that has a gradient; the step is ``-lr`` times it.

    Moments are updated. The tensors belong to the optimizer (a momentum buffer, a gradient) and
    must not be changed.

    Args:
        groups: Parameter groups of an optimizer.
        state: Its state, by parameter.
    """
    found: dict[nn.Parameter, Tensor] = {}
    for group in groups:
        moving = [p for p in group["params"] if p.grad is not None]
        if not moving:
            continue
        grads: list[Tensor] = [p.grad for p in moving]
        if group["weight_decay"] and not group["decoupled_weight_decay"]:
            grads = list(torch._foreach_add(grads, moving, alpha=group["weight_decay"]))
        if "betas" in group:
            grads = _adam(moving, grads, state, group["betas"])
        elif group["momentum"]:
            grads = _heavy_ball(moving, grads, state, group["momentum"], group["dampening"])
        found.update(zip(moving, grads, strict=True))
    return found


def _heavy_ball(
    moving: Sequence[nn.Parameter],
    grads: Sequence[Tensor],
    state: MutableMapping[Any, Any],
    momentum: float,
    dampening: float,
) -> list[Tensor]:
    # As in torch, the first gradient enters undamped: buf = g.
    old = [(state[p]["momentum_buffer"], g) for p, g in zip(moving, grads, strict=True) if state[p]]
    if old:
        buffers = [buffer for buffer, _ in old]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, [g for _, g in old], alpha=1 - dampening)
    for parameter, grad in zip(moving, grads, strict=True):
        if not state[parameter]:
            state[parameter]["momentum_buffer"] = grad.detach().clone()
    return [state[p]["momentum_buffer"] for p in moving]


def _adam(
    moving: Sequence[nn.Parameter],
    grads: Sequence[Tensor],
    state: MutableMapping[Any, Any],
    betas: tuple[float, float],
) -> list[Tensor]:
    for parameter in moving:
        if not state[parameter]:
            state[parameter].update(
                step=torch.tensor(0.0, device="cpu"),
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )
    mine = [state[p] for p in moving]
    for one in mine:
        one["step"] += 1
    first, second = [s["exp_avg"] for s in mine], [s["exp_avg_sq"] for s in mine]
    torch._foreach_lerp_(first, list(grads), 1 - betas[0])
    torch._foreach_mul_(second, betas[1])
    torch._foreach_addcmul_(second, list(grads), list(grads), 1 - betas[1])
    steps = [float(s["step"]) for s in mine]
    root = torch._foreach_sqrt(second)
    torch._foreach_div_(root, [(1 - betas[1] ** t) ** 0.5 for t in steps])
    torch._foreach_add_(root, _EPSILON)
    result = torch._foreach_div(first, root)
    torch._foreach_div_(result, [1 - betas[0] ** t for t in steps])
    return list(result)


def base_arguments(
    momentum: float, dampening: float, betas: tuple[float, float], weight_decay: float | None
) -> dict[str, Any]:
    """What a user gave for the optimizer's own rule, by name."""
    return {
        "momentum": momentum,
        "dampening": dampening,
        "betas": betas,
        "weight_decay": weight_decay,
    }
