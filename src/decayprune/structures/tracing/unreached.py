"""Layers that the example inputs do not reach, and the widths that they may read or feed.

A head that is used with labels only, the other branch of a router, an expert without tokens: what
they read is cut, and they are not, so that the model breaks on the first input that takes that way.
Nobody can see which width it would be. So every width of a size that such a part reads or hands out
is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from decayprune.structures.structure_map import StructureMap


def protected(structures: StructureMap, model: nn.Module, unseen: Iterable[str]) -> dict[int, str]:
    """Groups that an unreached part may be coupled with, by number, with the reason.

    Args:
        structures: What can be pruned as far as the example inputs show.
        model: The traced model.
        unseen: Modules of which no parameter took part.
    """
    reasons: dict[int, str] = {}
    for part in _parts(model, set(unseen)):
        reads, hands_out = _ends(model.get_submodule(part))
        for number, group in enumerate(structures.groups):
            widths = {group.size * group.width, group.size * group.channels}
            if widths & {reads, hands_out}:
                reasons.setdefault(
                    number,
                    f"`{part}` may read or feed it, and is not reached by the example inputs (pass "
                    "inputs that reach it, or take it out of the model)",
                )
    return reasons


def _parts(model: nn.Module, unseen: set[str]) -> list[str]:
    """The largest modules of which nothing was reached, in order."""
    reached = [name for name in _holders(model) if name not in unseen]

    def whole(name: str) -> str:
        parent = name.rpartition(".")[0]
        inside = f"{parent}."
        if not parent or any(r == parent or r.startswith(inside) for r in reached):
            return name
        return whole(parent)

    return list(dict.fromkeys(whole(name) for name in _holders(model) if name in unseen))


def _holders(model: nn.Module) -> list[str]:
    """Modules that hold parameters of their own."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def _ends(part: nn.Module) -> tuple[int, int]:
    """What a part reads first and hands out last, as far as its layers tell; 0 if they do not."""
    widths = [w for m in part.modules() if (w := _widths(m)) is not None]
    return (widths[0][0], widths[-1][1]) if widths else (0, 0)


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Width read and width handed out by one layer."""
    own: Mapping[str, nn.Parameter] = dict(module.named_parameters(recurse=False))
    matrix = next((p for p in own.values() if p.dim() > 1), None)
    if matrix is None:
        vector = next((p for p in own.values() if p.dim() == 1), None)
        return None if vector is None else (vector.shape[0], vector.shape[0])
    if isinstance(module, nn.Embedding):
        return 0, matrix.shape[1]
    groups = getattr(module, "groups", 1)
    out, into = matrix.shape[0], matrix.shape[1]
    if getattr(module, "transposed", False):
        return out, into * groups
    return into * groups, out
