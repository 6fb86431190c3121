"""The cut: structures leave a model physically, in place, with the way back noted.

A cut keeps every ``nn.Parameter`` object and gives it smaller data, so optimizers, schedulers and
shared parameters stay bound; optimizer state of the parameter's shape is sliced along. Whether it
changed anything is not asked here: see :mod:`~decayprune.surgery.verified`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from decayprune.structures.exact.swap import become_all
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.twin import named_tensors
from decayprune.surgery.bypassing import bypass
from decayprune.surgery.undo import Undo

_CHANGED, _KEPT = "_sizes_changed_by_cut", "_buffers_kept_by_cut"
Kept = dict[str, dict[int, list[int]]]


def kept_indices(structures: StructureMap, gone: Tensor) -> dict[tuple[str, int], Tensor]:
    """What stays along each dimension that is cut, by (tensor name, dimension).

    Args:
        structures: Of the model before the cut.
        gone: Which of them leave, bool, shape ``(S,)``.
    """
    return {where: stays.indices for where, stays in _cuts(structures, gone)}


class Stays(NamedTuple):
    """What stays of a width.

    Attributes:
        indices: Its indices, ascending.
        first: The first of them where they have no gap; else None.
    """

    indices: Tensor
    first: int | None

    def of(self, value: Tensor, dim: int, *, copy: bool) -> Tensor:
        """That part of a tensor, taken as a whole where there is no gap: many times faster.

        Args:
            value: The tensor.
            dim: Its dimension of this width.
            copy: A view will not do.
        """
        if self.first is None:
            return value.index_select(dim, self.indices.to(value.device))
        part = value.narrow(dim, self.first, self.indices.numel())
        return part.clone(memory_format=torch.contiguous_format) if copy else part


def stays_of(gone: Tensor, widths: Sequence[Tensor]) -> list[Stays]:
    """What stays of each width.

    Args:
        gone: Which structures leave, bool, shape ``(S,)``.
        widths: Structure of each index, -1 where none, as a map holds them: equal ones once.
    """
    there = torch.cat([~gone.cpu(), gone.new_ones(1, device="cpu")])  # label -1: stays
    found: dict[int, Stays] = {}
    for width in widths:
        if id(width) not in found:
            index = there[width].nonzero().flatten()
            first, last = (int(index[0]), int(index[-1])) if index.numel() else (0, -1)
            found[id(width)] = Stays(index, first if last - first + 1 == index.numel() else None)
    return [found[id(width)] for width in widths]


def _cuts(structures: StructureMap, gone: Tensor) -> list[tuple[tuple[str, int], Stays]]:
    """What stays along each dimension that is cut."""
    slices = [item for item in structures.slices if item.role != "gate"]
    stays = stays_of(gone, [item.structure for item in slices])
    pairs = zip(slices, stays, strict=True)
    return [((i.name, i.dim), s) for i, s in pairs if s.indices.numel() < i.structure.numel()]


def cut(
    undo: Undo,
    model: nn.Module,
    structures: StructureMap,
    gone: Tensor,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    *,
    on_trial: bool = False,
) -> None:
    """Cut a model.

    Args:
        undo: Gets the way back, each step of it before its change.
        model: Cut in place.
        structures: Its structures.
        gone: Which of them leave, bool, shape ``(S,)``.
        optimizers: Their state of cut parameters is sliced along.
        on_trial: The cut, of a twin without gradients and optimizers, is undone soon: let tensors
            look into the old ones where they can.
    """
    tensors, modules = named_tensors(model), dict(model.named_modules())
    cuts_of: dict[str, dict[int, Stays]] = {}
    for (name, dim), stays in _cuts(structures, gone):
        cuts_of.setdefault(name, {})[dim] = stays
    left = [
        stays.indices.numel() for stays in stays_of(gone, [a[2] for a in structures.attributes])
    ]
    attributes = list(zip(structures.attributes, left, strict=True))
    loses = {module for (module, _, width, _), stay in attributes if stay < width.numel()}
    encoders = (m for m in modules.values() if isinstance(m, nn.TransformerEncoder))
    undo.keep(*(modules[module] for module in loses), *encoders)  # what become_all may change
    become_all(model, [modules[module] for module in loses])
    for name, cuts in cuts_of.items():
        if on_trial:
            _show_part(undo, tensors[name], cuts)
        else:
            _cut_tensor(undo, tensors[name], cuts, optimizers)
        home, _, leaf = name.rpartition(".")
        if leaf in modules[home]._non_persistent_buffers_set:
            undo.keep(modules[home])
            note_kept(modules[home], leaf, {dim: s.indices.tolist() for dim, s in cuts.items()})
    for (module, attribute, _, divisor), stay in attributes:
        if module in loses:
            _set(undo, modules[module], attribute, stay // divisor)
    laid_out(modules[module] for module in loses)
    for branch in structures.branches:
        if bool(gone[branch.structure]):
            bypass(undo, model, branch.bypassed, optimizers)


def laid_out(modules: Iterable[nn.Module]) -> None:
    """Lay the weights of recurrent layers one behind the other, as cuDNN wants them.

    Args:
        modules: Some modules; all that are no recurrent layers on a GPU stay as they are.
    """
    for module in modules:
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def changed_sizes(module: nn.Module) -> tuple[str, ...]:
    """Names of the integer attributes of a module that a cut has changed, sorted.

    They stand on the module itself, so that copies and pickles of it know them, too: what else of
    a user's own module is an integer (an epoch, a counter) is no size.
    """
    names: tuple[str, ...] = vars(module).get(_CHANGED, ())
    return names


def note_changed(module: nn.Module, attribute: str) -> None:
    """Note that an integer attribute of a module follows a cut; layers of torch need no note.

    Args:
        module: Gets the note.
        attribute: Its name.
    """
    if not type(module).__module__.startswith("torch.nn."):
        vars(module)[_CHANGED] = tuple(sorted({*changed_sizes(module), attribute}))


def kept_of_buffers(module: nn.Module) -> Kept:
    """What is left of buffers that no state dict holds: indices by name and dimension.

    A fresh model makes their values anew, of all channels; these say which of them to take.
    """
    found: Kept = vars(module).get(_KEPT, {})
    return found


def note_kept(module: nn.Module, buffer: str, cuts: Mapping[int, list[int]]) -> None:
    """Note which indices of a buffer stay.

    Args:
        module: Gets the note.
        buffer: Its name there.
        cuts: Indices that stay, by dimension, counted from what is there now.
    """
    noted = kept_of_buffers(module)
    before = noted.get(buffer, {})
    now = {
        dim: [before[dim][i] for i in index] if dim in before else index
        for dim, index in cuts.items()
    }
    vars(module)[_KEPT] = {**noted, buffer: {**before, **now}}


def _show_part(undo: Undo, tensor: Tensor, cuts: Mapping[int, Stays]) -> None:
    """Let a tensor without a gradient look into its old data where it can."""
    old = tensor.data

    def put_back() -> None:
        tensor.data = old

    undo.note(put_back)
    tensor.data = _part(old, cuts, copy=False)


def _part(value: Tensor, cuts: Mapping[int, Stays], *, copy: bool) -> Tensor:
    """What stays of a tensor, in the memory format that it has; a view of it where possible."""
    part = value
    for dim, stays in cuts.items():
        part = stays.of(part, dim, copy=copy)
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    if last and not value.is_contiguous():
        return part.contiguous(memory_format=torch.channels_last)
    return part.contiguous()  # once, or every layer would do so in every pass


def _cut_tensor(
    undo: Undo,
    tensor: Tensor,
    cuts: Mapping[int, Stays],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    old, grad, shape = tensor.data, tensor.grad, tensor.shape

    def smaller(value: Tensor) -> Tensor:
        return _part(value.detach(), cuts, copy=True)

    def put_back() -> None:
        tensor.grad = None
        _give(tensor, old)
        tensor.grad = grad

    undo.note(put_back)
    tensor.grad = None
    _give(tensor, smaller(old))
    if grad is not None:
        tensor.grad = smaller(grad)
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})
        for key, value in list(state.items()):
            if isinstance(value, Tensor) and value.shape == shape and value.dim():
                undo.keep_item(state, key)
                state[key] = smaller(value)


def _set(undo: Undo, module: nn.Module, attribute: str, value: int) -> None:
    name, _, place = attribute.partition(".")
    old = new = getattr(module, name)
    if isinstance(old, (tuple, list)):
        new = list(old)
        new[int(place or -1)] = value  # normalized_shape: the last one
        new = type(old)(new)
    else:
        new = value
    if new != old:
        undo.note(lambda: setattr(module, name, old))
        setattr(module, name, new)
        note_changed(module, name)


def _give(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape, which autograd then knows, too."""
    # A graph that is still alive (the last loss, usually) keeps the parameter's gradient
    # accumulator, and with it the old shape, alive. Torch drops it where the dtype changes.
    other = torch.float32 if data.dtype == torch.float16 else torch.float16
    tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
