"""The cut: structures leave a model physically, in place, with the way back noted.

A cut keeps every ``nn.Parameter`` object and gives it smaller data, so optimizers, schedulers and
shared parameters stay bound; optimizer state of the parameter's shape is sliced along. Whether it
changed anything is not asked here: see :mod:`~decayprune.surgery.verified`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    slices = [item for item in structures.slices if item.role != "gate"]
    kept = zip(slices, _kept(gone, [item.structure for item in slices]), strict=True)
    return {(s.name, s.dim): index for s, index in kept if index.numel() < s.structure.numel()}


def _kept(gone: Tensor, widths: Sequence[Tensor]) -> list[Tensor]:
    """Indices that stay of each width."""
    stays = torch.cat([~gone.cpu(), gone.new_ones(1, device="cpu")])  # label -1: stays
    found: dict[int, Tensor] = {}  # a map holds equal widths once
    for width in widths:
        if id(width) not in found:
            found[id(width)] = stays[width].nonzero().flatten()
    return [found[id(width)] for width in widths]


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
        on_trial: The cut is undone soon: let tensors look into the old ones where they can, and
            let gradients go instead of slicing them.
    """
    tensors, modules = named_tensors(model), dict(model.named_modules())
    cuts_of: dict[str, list[tuple[int, Tensor]]] = {}
    for (name, dim), index in kept_indices(structures, gone).items():
        cuts_of.setdefault(name, []).append((dim, index))
    left = [index.numel() for index in _kept(gone, [a[2] for a in structures.attributes])]
    attributes = list(zip(structures.attributes, left, strict=True))
    loses = {module for (module, _, width, _), stay in attributes if stay < width.numel()}
    encoders = (m for m in modules.values() if isinstance(m, nn.TransformerEncoder))
    undo.keep(*(modules[module] for module in loses), *encoders)  # what become_all may change
    become_all(model, [modules[module] for module in loses])
    for name, cuts in cuts_of.items():
        _cut_tensor(undo, tensors[name], cuts, optimizers, on_trial)
        home, _, leaf = name.rpartition(".")
        if leaf in modules[home]._non_persistent_buffers_set:
            undo.keep(modules[home])
            note_kept(modules[home], leaf, {dim: index.tolist() for dim, index in cuts})
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


def _cut_tensor(
    undo: Undo,
    tensor: Tensor,
    cuts: Sequence[tuple[int, Tensor]],
    optimizers: Sequence[torch.optim.Optimizer],
    on_trial: bool,
) -> None:
    old, grad, shape = tensor.data, tensor.grad, tensor.shape

    def smaller(value: Tensor) -> Tensor:
        result = value.detach()
        for dim, index in cuts:
            result = _select(result, dim, index.to(result.device), copy=not on_trial)
        last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
        if last and not value.is_contiguous():
            return result.contiguous(memory_format=torch.channels_last)
        return result.contiguous()  # once, or every layer would do so in every pass

    def put_back() -> None:
        tensor.grad = None
        _give(tensor, old)
        tensor.grad = grad

    undo.note(put_back)
    tensor.grad = None
    _give(tensor, smaller(old))
    if grad is not None and not on_trial:
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


def _select(value: Tensor, dim: int, index: Tensor, *, copy: bool) -> Tensor:
    first, count = int(index[0]), index.numel()
    if int(index[-1]) - first + 1 == count:  # a stretch: many times faster
        part = value.narrow(dim, first, count)
        return part.clone(memory_format=torch.contiguous_format) if copy else part
    return value.index_select(dim, index)


def _give(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape, which autograd then knows, too."""
    # A graph that is still alive (the last loss, usually) keeps the parameter's gradient
    # accumulator, and with it the old shape, alive. Torch drops it where the dtype changes.
    other = torch.float32 if data.dtype == torch.float16 else torch.float16
    tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data
