"""Moving averages and other copies of a model, cut along with it.

A copy (``copy.deepcopy``, ``torch.optim.swa_utils.AveragedModel``) has the model's names and
shapes, and weights of its own: an average still remembers structures that the model has lost. They
are zeroed in the copy, too, and cut out; its own outputs are compared across the cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from decayprune.structures import edits, sums
from decayprune.structures.example import ExampleInputs, outputs
from decayprune.structures.structure_map import Role, StructureMap
from decayprune.surgery.cut import Cut, difference, first_line, named_tensors, tolerance_for


def matching(copies: nn.Module | Sequence[nn.Module], model: nn.Module) -> list[nn.Module]:
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


class CopyCut:
    """One cut of a copy that can be undone.

    Args:
        copy: A copy of the model, as :func:`matching` returns it; zeroed and cut in place.
        structures: The structures of both.
        gone: Which of them leave, bool, shape ``(S,)``.
        roles: Slices of them that are zeroed first.
    """

    def __init__(
        self, copy: nn.Module, structures: StructureMap, gone: Tensor, roles: Collection[Role]
    ) -> None:
        self._copy, self._structures, self._gone = copy, structures, gone
        self._cut: Cut | None = None
        tensors = named_tensors(copy)
        slices = sums.labelled(structures, roles)
        names = {item.name for item in slices}
        self._saved = {name: tensors[name].detach().clone() for name in names}
        if not names:
            return
        ranks = {name: tensors[name].dim() for name in names}
        device = tensors[next(iter(names))].device
        locator = edits.Locator(slices, structures.num_structures, ranks, device)
        edits.zero_(locator.pick(gone.nonzero().flatten().to(device)), tensors)

    def cut(self, example_inputs: ExampleInputs, tolerance: float | None) -> str | None:
        """Cut, and compare the copy's outputs before and after: what is wrong, or None."""
        before = outputs(self._copy, example_inputs)
        self._cut = Cut(self._copy, self._structures, self._gone, final=True)
        try:
            relative = difference(before, outputs(self._copy, example_inputs))[1]
        except Exception as raised:  # forward() of a cut model may fail in any way
            return f"forward() fails: {first_line(raised)}"
        limit = tolerance_for(before) if tolerance is None else tolerance
        return None if relative <= limit else f"outputs changed by {relative:.1e} (relative)"

    def undo(self) -> None:
        """Put everything back as it was."""
        if self._cut is not None:
            self._cut.undo()
        tensors = named_tensors(self._copy)
        with torch.no_grad():
            for name, value in self._saved.items():
                tensors[name].copy_(value)
