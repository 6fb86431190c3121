"""Moving averages and other copies of a model, cut along with it.

A copy (``copy.deepcopy``, ``torch.optim.swa_utils.AveragedModel``) has the model's names and
shapes, and weights of its own: an average still remembers structures that the model has lost. They
are zeroed in the copy, too, and cut out; its own outputs are compared across the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from decayprune.structures import edits, sums
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.structures.twin import named_tensors
from decayprune.surgery.undo import Undo

Copies = nn.Module | Sequence[nn.Module]
"""One copy or several."""


def matching(copies: Copies, model: nn.Module) -> list[nn.Module]:
    """The copies themselves, without what is wrapped around them.

    Args:
        copies: One or several; each the copy or a module that holds it as ``.module``.
        model: What they are copies of, not cut yet.

    Raises:
        TypeError: A copy is no module.
        ValueError: A copy has other names or shapes, or shares weights with the model.
    """
    given = [copies] if isinstance(copies, nn.Module) else list(copies)
    return [_bare(copy, model, number) for number, copy in enumerate(given)]


def _bare(copy: nn.Module, model: nn.Module, number: int) -> nn.Module:
    what = f"copies[{number}], a {type(copy).__name__},"
    if not isinstance(copy, nn.Module):
        raise TypeError(f"{what} is no torch.nn.Module; pass the modules of the averages.")
    ours = named_tensors(model)
    inner = getattr(copy, "module", None)
    if isinstance(inner, nn.Module) and not ours.keys() <= named_tensors(copy).keys():
        copy = inner
    theirs = named_tensors(copy)
    for name, tensor in ours.items():
        if name not in theirs:
            raise ValueError(f"{what} is no copy of this model: it has no {name}. {_UNCUT}")
        if theirs[name].shape != tensor.shape:
            raise ValueError(
                f"{what} is no copy of this model: its {name} is {tuple(theirs[name].shape)}, the "
                f"model's is {tuple(tensor.shape)}. {_UNCUT}"
            )
        if theirs[name] is tensor:
            raise ValueError(
                f"{what} shares {name} with the model, so that it is no copy. Make it with "
                f"copy.deepcopy(model). {_UNCUT}"
            )
    return copy


_UNCUT = "Nothing was cut."


def refuse_late(copies: nn.Module | Sequence[nn.Module]) -> None:
    """Raise if there are copies, for a model that is compact already.

    Raises:
        RuntimeError: There are.
    """
    if isinstance(copies, nn.Module) or len(copies):
        raise RuntimeError(
            "The model is compact already, and its copies can only be cut along with it: call "
            "compact(copies=...) once, with all of them."
        )


def zero_(
    undo: Undo,
    copy: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    roles: Collection[Role],
) -> None:
    """Zero in a copy what its model has lost.

    Args:
        undo: Gets the way back.
        copy: As :func:`matching` returns it; changed in place.
        structures: The structures of both.
        gone: Which of them leave, bool, shape ``(S,)``.
        roles: Slices of them that are zeroed.
    """
    tensors = named_tensors(copy)
    pick = edits.picked(sums.labelled(structures, roles), gone, tensors)
    for name in dict.fromkeys(pick.names):
        undo.keep_values(tensors[name])
    edits.zero_(pick, tensors)
