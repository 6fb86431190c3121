"""The structure of a cut model in memory: shapes of its tensors, sizes that its layers remember.

That is everything that a compact model has and a dense one of the same class has not, besides the
weights. It is plain JSON, and a fresh dense model is reshaped by it before its weights are loaded,
by whoever loads them. Whether it fits is known before the model is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from decayprune.checkpoint import fields
from decayprune.checkpoint.fields import CheckpointError, dtype_name, is_size
from decayprune.structures.exact.bypass import Bypass, put_bypass
from decayprune.structures.exact.response_norm import CountingResponseNorm
from decayprune.structures.exact.swap import STAND_INS, become_all, counted_width
from decayprune.structures.exact.window_attention import HeadwiseWindowAttention
from decayprune.structures.twin import named_tensors
from decayprune.surgery.cut import changed_sizes, kept_of_buffers, laid_out, note_changed, note_kept

_ATTRIBUTES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.PReLU: ("num_parameters",),
    nn.Embedding: ("embedding_dim",),
    nn.Unflatten: ("unflattened_size",),
    nn.RNNBase: ("input_size", "hidden_size", "proj_size"),
    CountingResponseNorm: ("normalized_shape",),
    HeadwiseWindowAttention: ("num_heads", "dim"),
    nn.MultiheadAttention: ("embed_dim", "kdim", "vdim", "num_heads", "head_dim"),
}

Model = TypeVar("Model", bound=nn.Module)
Plan = list[tuple[nn.Module, str, Any]]
"""Attributes to set: module, name, value."""


def structure(model: nn.Module) -> dict[str, Any]:
    """What tells a compact model from a dense one of its class, but for the weights.

    Put it where your framework keeps what it saves (a configuration, a checkpoint), and give it to
    :func:`reshape` before the weights are loaded.

    Args:
        model: Usually compacted; any module of tensors has a structure.

    Returns:
        Plain JSON values: shape and dtype of each parameter and persistent buffer, which names are
        tied, and the sizes that layers keep as attributes. Of the attributes of your own modules
        those that a cut has changed, of buffers that are not persistent the indices kept, and of
        residual branches that were removed the modules that are bypassed.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"structure(model) takes a torch.nn.Module; found {type(model).__name__}.")
    tensors, tied = distinct(saved_tensors(model))
    bypassed = {
        name: {"type": module.replaced, "zero": int(module.zero), "items": module.items}
        for name, module in model.named_modules()
        if isinstance(module, Bypass)
    }
    buffers = {
        f"{name}.{leaf}" if name else leaf: [[dim, index] for dim, index in sorted(cuts.items())]
        for name, module in model.named_modules()
        for leaf, cuts in kept_of_buffers(module).items()
    }
    return {
        "format": fields.FORMAT,
        "version": fields.VERSION,
        "model": type(model).__qualname__,
        "tensors": {
            name: {"shape": list(value.shape), "dtype": dtype_name(value)}
            for name, value in tensors.items()
        },
        "tied": tied,
        "modules": {
            name: {"type": _type(module)} | attributes
            for name, module in model.named_modules()
            if (attributes := _attributes(module))
        },
        **({"buffers": buffers} if buffers else {}),
        **({"bypassed": bypassed} if bypassed else {}),
    }


def reshape(model: Model, structure: Mapping[str, Any]) -> Model:
    """Give a fresh dense model the shapes of a compact one; load the weights afterwards.

    Parameters keep their identity, device (``meta`` too) and dtype. Their values are of no use
    until weights are loaded: of each dimension the first indices stay, whichever were kept.

    Args:
        model: A dense model of the same architecture; changed in place.
        structure: What :func:`structure` returned.

    Returns:
        The same model.

    Raises:
        TypeError: ``model`` is no module.
        CheckpointError: The structure is damaged, or that of another architecture; the model was
            not changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            "reshape(model, structure) takes the model first, a torch.nn.Module; found "
            f"{type(model).__name__}."
        )
    fields.check(
        structure, "This structure", "decayprune.structure()", "Take it from the model again."
    )
    # Normalisers are known by what they compute, wherever new tensors are made meanwhile.
    with torch.device("cpu"):
        _reshape(model, structure)
    return model


def _reshape(model: nn.Module, structure: Mapping[str, Any]) -> None:
    plan, shapes = _plan(structure, model), shapes_of(structure)
    buffers = _buffers_to_cut(structure, model)
    for name, entry in structure.get("bypassed", {}).items():
        if not isinstance(model.get_submodule(name), Bypass):
            put_bypass(model, name, zero=bool(entry["zero"]), items=entry["items"])
    own = saved_tensors(model)
    become_all(model, _losers(plan))
    for name, tensor in own.items():
        if list(tensor.shape) != shapes[name]:
            tensor.grad = None
            tensor.data = _leading(tensor.detach(), shapes[name])
    for home, leaf, cuts in buffers:
        for dim, index in cuts.items():
            buffer = home._buffers[leaf]
            assert buffer is not None
            chosen = torch.tensor(index, device=buffer.device)
            home._buffers[leaf] = buffer.index_select(dim, chosen)
        note_kept(home, leaf, cuts)
    for module, attribute, value in plan:
        if getattr(module, attribute) != value:
            note_changed(module, attribute)
            setattr(module, attribute, value)
    laid_out(module for module, _, _ in plan)


def _leading(value: Tensor, shape: list[int]) -> Tensor:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    last = last and not value.is_contiguous()
    for dim, size in enumerate(shape):
        value = value.narrow(dim, 0, size)
    return value.clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def _losers(plan: Plan) -> set[nn.Module]:
    """Modules that have to become their stand-ins, because they lose channels or heads."""
    return {
        module
        for module, attribute, value in plan
        if attribute == "counted"
        or (isinstance(module, nn.MultiheadAttention) and getattr(module, attribute) != value)
    }


# ---------------------------------------------------------------- what a model has


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by every name they have."""
    tensors = named_tensors(model)
    return {name: tensors[name] for name in model.state_dict(keep_vars=True) if name in tensors}


def distinct(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names of tied ones."""
    first: dict[int, str] = {}
    tied = {}
    for name, value in tensors.items():
        if id(value) in first:
            tied[name] = first[id(value)]
        else:
            first[id(value)] = name
    return {name: tensors[name] for name in first.values()}, tied


def shapes_of(structure: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes by every name, those of tied tensors included."""
    shapes = {name: entry["shape"] for name, entry in structure["tensors"].items()}
    return shapes | {name: shapes[other] for name, other in structure["tied"].items()}


def _type(module: nn.Module) -> str:
    """Name of a module's class, or of the one that the dense model has in its place."""
    replaced = module.replaced if isinstance(module, STAND_INS) else None
    return type(module).__qualname__ if replaced is None else str(replaced)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Integer attributes that a cut changes."""
    names = [n for kind, ns in _ATTRIBUTES.items() if isinstance(module, kind) for n in ns]
    if isinstance(module, STAND_INS):
        names += ["counted"]  # an attention has none
    elif not _is_of_torch(module):
        names += [name for name in changed_sizes(module) if name not in names]
    found: dict[str, int | list[int]] = {}
    for name in names:
        value: Any = getattr(module, name, None)
        if _are_sizes(value):
            found[name] = list(value)
        elif isinstance(value, int) and is_size(value):
            found[name] = value
    weight = dict(module._parameters.items()).get("weight")  # a ScriptModule has no real dict
    implied = _implied(module, found, None if weight is None else list(weight.shape))
    return found | {name: value for name, value in implied.items() if name in found}


def _are_sizes(value: Any) -> bool:
    """Whether an attribute holds several sizes, such as those of a split."""
    several = isinstance(value, (tuple, list)) and len(value) > 0
    return several and all(type(one) is int for one in value)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


# ---------------------------------------------------------------- whether it fits


def unfit(structure: Mapping[str, Any], model: nn.Module, what: str) -> CheckpointError:
    """The error for a structure of another architecture."""
    return CheckpointError(
        f"The saved model does not fit this {type(model).__qualname__}: {what}. Pass a fresh "
        f"dense model of the architecture that was saved ({structure.get('model')})."
    )


def _plan(structure: Mapping[str, Any], model: nn.Module) -> Plan:
    """Attributes to set, once everything was found to fit; raises before anything changes."""
    _check_bypassed(structure, model)
    shapes, own = shapes_of(structure), staying(saved_tensors(model), structure)
    if odd := sorted(set(own) ^ set(shapes)):
        sides = ("the file", "this one") if odd[0] in shapes else ("this one", "the file")
        raise unfit(structure, model, f"{sides[0]} has a tensor {odd[0]!r}, {sides[1]} has not")
    for name, saved in shapes.items():
        here = list(own[name].shape)
        if len(here) != len(saved) or any(s > o for s, o in zip(saved, here, strict=True)):
            raise unfit(structure, model, f"{name} is {saved} there and {here} here")
    tied = {name for pair in structure["tied"].items() for name in pair}
    modules, plan = dict(model.named_modules()), []
    for name, entry in structure["modules"].items():
        module = modules.get(name)
        if module is None or _type(module) != entry["type"]:
            raise unfit(structure, model, f"module {name!r} is no {entry['type']} here")
        sizes = {key: value for key, value in entry.items() if key != "type"}
        weight = f"{name}.weight" if name else "weight"
        implied = _implied(module, sizes, shapes.get(weight))
        if weight in tied:  # may have kept the sizes of before, which nobody reads
            sizes |= {key: implied.get(key, value) for key, value in sizes.items()}
        if problem := _problem(f"module {name!r}", module, sizes, implied):
            raise unfit(structure, model, problem)
        plan += [
            (module, attribute, _like(getattr(module, attribute, ()), value))
            for attribute, value in sizes.items()
        ]
    return plan


def _check_bypassed(structure: Mapping[str, Any], model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for name, entry in structure.get("bypassed", {}).items():
        module = modules.get(name)
        here = module.replaced if isinstance(module, Bypass) else type(module).__qualname__
        inner = any(other.startswith(f"{name}.") for other in structure["bypassed"])
        if not name or inner or module is None or here != entry["type"]:
            raise unfit(structure, model, f"module {name!r} is no {entry['type']} here")
    for name, module in modules.items():
        if isinstance(module, Bypass) and name not in structure.get("bypassed", {}):
            raise unfit(structure, model, f"module {name!r} was removed here")


def staying(tensors: dict[str, Tensor], structure: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model without those of modules that a structure bypasses."""
    gone = tuple(f"{name}." for name in structure.get("bypassed", {}))
    return {name: value for name, value in tensors.items() if not name.startswith(gone)}


def _buffers_to_cut(
    structure: Mapping[str, Any], model: nn.Module
) -> list[tuple[nn.Module, str, dict[int, list[int]]]]:
    """Buffers that are not persistent, and what to keep of them; raises before anything changes."""
    modules, plan = dict(model.named_modules()), []
    for name, said in structure.get("buffers", {}).items():
        home, _, leaf = name.rpartition(".")
        module, cuts = modules.get(home), dict(map(tuple, said))
        if module is None or leaf not in module._non_persistent_buffers_set:
            raise unfit(structure, model, f"it has no buffer {name!r} that is not persistent")
        buffer = module._buffers[leaf]
        shape = () if buffer is None else buffer.shape
        if kept_of_buffers(module).get(leaf) == cuts:
            continue  # reshaped already
        for dim, index in cuts.items():
            rising = index == sorted(set(index)) and index
            if dim >= len(shape) or not rising or index[-1] >= shape[dim]:
                raise unfit(
                    structure, model, f"the indices kept of {name} do not fit its {list(shape)}"
                )
        plan.append((module, leaf, cuts))
    return plan


def _like(here: Any, value: Any) -> Any:
    """Several sizes as the tuple or list that they are in the model."""
    if not isinstance(value, list):
        return value
    return value if isinstance(here, list) else tuple(value)


def _problem(
    where: str, module: nn.Module, sizes: Mapping[str, Any], implied: Mapping[str, Any]
) -> str | None:
    """Why a module cannot have these sizes; None if it can."""
    known = _settable(module)
    for attribute, value in sizes.items():
        here = known.get(attribute)
        if attribute == "counted":
            if counted_width(module) != value:
                return f"{where} counts {value} channels there, not so here"
        elif attribute in ("normalized_shape", "dim") and "counted" in sizes:
            pass  # a module of another library has no such attribute before
        elif type(here) is not type(value):
            return f"{where} has no attribute {attribute!r} here"
        elif value != implied.get(attribute, value):
            return f"{attribute} of {where} is {value} there, and its weight {implied[attribute]}"
        elif _is_of_torch(module) and value != here and not _smaller(value, here):
            return f"{attribute} of {where} is {value} there and {here} here"
    return None


def _smaller(value: Any, here: Any) -> bool:
    """Whether a cut may have left this of a size: something, and less than it was."""
    values, heres = (size if isinstance(size, list) else [size] for size in (value, here))
    fits = len(values) == len(heres)
    return fits and all(0 < one <= other for one, other in zip(values, heres, strict=True))


def _settable(module: nn.Module) -> dict[str, Any]:
    """What a structure may say of a module: its sizes, and any integer of the user's own module."""
    own = {} if isinstance(module, STAND_INS) or _is_of_torch(module) else vars(module)
    counts = {n: v for n, v in own.items() if type(v) is int and is_size(v) and n != "type"}
    several = {n: list(v) for n, v in own.items() if _are_sizes(v) and n != "type"}
    return counts | several | _attributes(module)


def _implied(
    module: nn.Module, sizes: Mapping[str, Any], weight: list[int] | None
) -> dict[str, int | list[int]]:
    """Sizes of a layer of torch that follow from the shape of its weight."""
    if not weight or not _is_of_torch(module):  # others may pack their weights
        return {}
    if isinstance(module, nn.modules.conv._ConvNd):
        times = sizes.get("groups")
        if not isinstance(times, int):
            return {}
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            return {"in_channels": weight[0], "out_channels": weight[1] * times}
        return {"out_channels": weight[0], "in_channels": weight[1] * times}
    if isinstance(module, nn.Linear):
        return {"out_features": weight[0], "in_features": weight[1]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": weight[1]}
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)):
        return dict.fromkeys(("num_features", "num_channels", "num_parameters"), weight[0])
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": weight}
    return {}
