"""Which modules have a stand-in that stays exact when channels leave, and how they become it.

A module becomes its stand-in by changing its class (as ``torch.nn.utils.parametrize`` does): the
object, its parameters, hooks and every reference to it stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from decayprune.structures.exact.attention import HeadwiseAttention
from decayprune.structures.exact.likeness import likeness
from decayprune.structures.exact.normalisers import (
    Normaliser,
    followed,
    is_group_norm,
    normaliser,
)
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
_WAYS: WeakKeyDictionary[type[nn.Module], dict[Hashable, _Way | None]] = WeakKeyDictionary()
"""What modules become, by class and likeness: to find out, they are run dozens of times."""


class _Way(NamedTuple):
    """What a module becomes: its class, and what that has to know."""

    kind: type[nn.Module]
    attributes: dict[str, Any]


def stand_in(module: nn.Module) -> type[nn.Module] | None:
    """The class that computes the same as a module for fewer channels; None if it needs none.

    Modules that normalise every channel by itself, or hold no width, need none. A normaliser
    whose class is not known has none either.
    """
    if isinstance(module, STAND_INS):
        return type(module)
    way = _way(module)
    return None if way is None else way.kind


def become(module: nn.Module) -> Callable[[], None]:
    """Turn a module into its stand-in, before any of its channels leave; returns the way back."""
    way = None if isinstance(module, STAND_INS) else _way(module)
    if way is None:
        return lambda: None
    old, held = type(module), dict(vars(module))
    added = {"replaced": old.__qualname__, **way.attributes}
    vars(module).update(added)
    module.__class__ = way.kind

    def back() -> None:
        module.__class__ = old
        for name in added:
            if name in held:
                setattr(module, name, held[name])
            else:
                vars(module).pop(name)

    return back


def _way(module: nn.Module) -> _Way | None:
    """What a module becomes; of modules that are alike, the first is looked into."""
    known = None if _is_of_torch(module) else likeness(module)
    if known is None:
        return _sought(module)
    ways = _WAYS.setdefault(type(module), {})
    if known not in ways:
        ways[known] = _sought(module)
    return ways[known]


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _sought(module: nn.Module) -> _Way | None:
    if isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels or not is_group_norm(module):
            return None
        added = {"counted": module.num_channels, "followed": followed(module)}
        return _Way(CountingGroupNorm, added)
    if isinstance(module, nn.MultiheadAttention):
        plain = module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        own = type(module).forward is not nn.MultiheadAttention.forward
        return _Way(HeadwiseAttention, {}) if plain and not own else None
    if is_window_attention(module):
        qkv, heads = cast(nn.Linear, module.qkv), cast(int, module.num_heads)
        dim = qkv.in_features
        added = {"counted": dim, "dim": dim, "head_dim": dim // heads}
        return _Way(HeadwiseWindowAttention, added)
    if (way := standardisation(module)) is not None:
        return _Way(COUNTING[cast(Tensor, module.weight).dim() - 3], dict(vars(way)))
    if (found := normaliser(module)) is not None:
        return _of_normaliser(module, found)
    if (responses := response_norm(module)) is not None:
        shape = {"normalized_shape": (responses.counted,)}
        return _Way(CountingResponseNorm, vars(responses) | shape)
    return None


def _of_normaliser(module: nn.Module, found: Normaliser) -> _Way:
    added = {
        "counted": found.width,
        "followed": followed(module),
        "normalized_shape": (found.width,),
        "eps": found.eps,
        "channels_first": found.channels_first,
        "affine": (found.weight, found.bias),
        "elementwise_affine": found.weight is not None,
    }
    if found.centred:
        return _Way(CountingLayerNorm, added)
    return _Way(CountingRMSNorm, added | {"offset": found.offset})


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
    way = _way(module)
    return None if way is None else way.attributes.get("counted")


@contextmanager
def normalisers_shown(model: nn.Module) -> Iterator[None]:
    """Show modules that normalise in words of their own to a tracer as their stand-ins."""
    undo: list[Callable[[], None]] = []
    try:
        undo += [
            become(module)
            for module in model.modules()
            if not _is_of_torch(module) and stand_in(module) in _SHOWN
        ]
        yield
    finally:
        for back in undo:
            back()
