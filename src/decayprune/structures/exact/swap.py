"""Which modules have a stand-in that stays exact when channels leave, and how they become it.

A module becomes its stand-in by changing its class (as ``torch.nn.utils.parametrize`` does): the
object, its parameters, hooks and every reference to it stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from decayprune.structures.exact.attention import HeadwiseAttention
from decayprune.structures.exact.normalisers import followed, is_group_norm, normaliser
from decayprune.structures.exact.norms import CountingGroupNorm, CountingLayerNorm, CountingRMSNorm
from decayprune.structures.exact.response_norm import CountingResponseNorm, response_norm
from decayprune.structures.exact.standardised import COUNTING, standardisation
from decayprune.structures.exact.window_attention import HeadwiseWindowAttention

STAND_INS = (
    CountingLayerNorm,
    CountingGroupNorm,
    CountingRMSNorm,
    CountingResponseNorm,
    HeadwiseAttention,
    HeadwiseWindowAttention,
    *COUNTING,
)
_SHOWN = (CountingLayerNorm, CountingRMSNorm, CountingGroupNorm, CountingResponseNorm)
_WINDOWS = {
    f"torchvision.models.swin_transformer.ShiftedWindowAttention{version}" for version in ("", "V2")
}


def stand_in(module: nn.Module) -> type[nn.Module] | None:
    """The class that computes the same as a module for fewer channels; None if it needs none.

    Modules that normalise every channel by itself, or hold no width, need none. A normaliser
    whose class is not known has none either.
    """
    if isinstance(module, STAND_INS):
        return type(module)
    if isinstance(module, nn.GroupNorm):
        mixes = module.num_groups != module.num_channels
        return CountingGroupNorm if mixes and is_group_norm(module) else None
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        own = type(module).forward is not nn.MultiheadAttention.forward
        return HeadwiseAttention if plain and not own else None
    if is_window_attention(module):
        return HeadwiseWindowAttention
    if standardisation(module) is not None:
        weight: Any = module.weight
        return COUNTING[weight.dim() - 3]
    if (found := normaliser(module)) is not None:
        return CountingLayerNorm if found.centred else CountingRMSNorm
    return CountingResponseNorm if response_norm(module) is not None else None


def become(module: nn.Module) -> Callable[[], None]:
    """Turn a module into its stand-in, before any of its channels leave; returns the way back."""
    new = stand_in(module)
    old, held = type(module), dict(vars(module))
    if new is None or new is old:
        return lambda: None
    added = {"replaced": old.__qualname__, **_attributes(module, new)}
    vars(module).update(added)
    module.__class__ = new

    def back() -> None:
        module.__class__ = old
        for name in added:
            if name in held:
                setattr(module, name, held[name])
            else:
                vars(module).pop(name)

    return back


def _attributes(module: nn.Module, new: type[nn.Module]) -> dict[str, Any]:
    """What the stand-in of a module has to know."""
    added: dict[str, Any] = {}
    if new in (CountingLayerNorm, CountingGroupNorm, CountingRMSNorm):
        added["followed"] = followed(module)
    if (counted := counted_width(module)) is not None:
        added["counted"] = counted
    if is_window_attention(module):
        heads: Any = module.num_heads
        added |= {"dim": counted, "head_dim": (counted or 0) // heads}
    elif (way := standardisation(module)) is not None:
        added |= vars(way)
    elif (found := normaliser(module)) is not None:
        added |= {"normalized_shape": (found.width,), "eps": found.eps}
        added |= {"channels_first": found.channels_first, "affine": (found.weight, found.bias)}
        added |= {"elementwise_affine": found.weight is not None}
        added |= {} if found.centred else {"offset": found.offset}
    elif (responses := response_norm(module)) is not None:
        added |= vars(responses) | {"normalized_shape": (responses.counted,)}
    return added


def become_all(model: nn.Module, modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Turn modules of a model into their stand-ins; returns the way back."""
    undo = [become(module) for module in modules]
    if any(isinstance(module, STAND_INS) for module in model.modules()):
        # Given a padding mask, an encoder packs its tokens for torch's own fused layers only.
        undo += [_unpacked(m) for m in model.modules() if isinstance(m, nn.TransformerEncoder)]

    def back() -> None:
        for one in reversed(undo):
            one()

    return back


def _unpacked(encoder: nn.TransformerEncoder) -> Callable[[], None]:
    before = encoder.use_nested_tensor
    encoder.use_nested_tensor = False
    return lambda: setattr(encoder, "use_nested_tensor", before)


def is_window_attention(module: nn.Module) -> bool:
    """Whether this is torchvision's attention in shifted windows, as it wrote it."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in _WINDOWS


def counted_width(module: nn.Module) -> int | None:
    """Channels there were before any left, where a stand-in has to know; None elsewhere."""
    if isinstance(module, STAND_INS) and not isinstance(module, HeadwiseAttention):
        return int(module.counted)
    if is_window_attention(module):
        qkv: Any = module.qkv
        return int(qkv.in_features)
    if isinstance(module, nn.GroupNorm):
        return module.num_channels if stand_in(module) else None
    if (way := standardisation(module)) is not None:
        return way.counted
    if (found := normaliser(module)) is not None:
        return found.width
    responses = response_norm(module)
    return None if responses is None else responses.counted


@contextmanager
def normalisers_shown(model: nn.Module) -> Iterator[None]:
    """Show modules that normalise in words of their own to a tracer as their stand-ins."""
    undo: list[Callable[[], None]] = []
    try:
        undo += [
            become(module)
            for module in model.modules()
            if not type(module).__module__.startswith("torch.") and stand_in(module) in _SHOWN
        ]
        yield
    finally:
        for back in undo:
            back()
