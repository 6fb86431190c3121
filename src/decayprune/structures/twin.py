"""A twin of a model to experiment on: the same function, none of the same objects.

Whoever tries something out (a trace, a cut on trial) works on the twin, because nearly everything
leaves a mark on a living model. Giving a parameter other data, above all, drops the gradient hooks
of a DistributedDataParallel around it, and gradients are silently not averaged from then on.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset

_HOOKS = frozenset(name for name in vars(nn.Module()) if "hooks" in name)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
# What torch itself leaves out is not copied anyway.
_PLAIN_STATES = [getattr(kind, "__getstate__", None) for kind in (object, nn.Module)]
_NUMBERS = frozenset((type(None), bool, int, float, str))
_CALLS = (types.FunctionType, types.MethodType, partial)
# Whole worlds, of which a model knows one now and then: they are shared, not copied.
_WORLDS = (torch.optim.Optimizer, DataLoader, Dataset)
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their qualified names."""
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    return tensors


def twin(model: nn.Module, *, shapes_only: bool = False) -> nn.Module:
    """A copy that computes the same and shares no object that a forward pass could change.

    Parameters are new objects on the old storage (no weight is copied, so give one storage of its
    own before editing its values: :func:`own_storage`). Buffers, other tensors and Python state
    are copied; what cannot be (locks, files, process groups) is shared. Ties and shared modules
    stay ties. Forward hooks come along, bound to the twin where they were bound to the model;
    hooks of the backward pass and of state dicts do not.

    Args:
        model: Read only.
        shapes_only: Parameters and other floating-point tensors have shapes, and no values: they
            lie on torch's device "meta", where a pass costs next to nothing.

    Raises:
        ValueError: A lazy layer has no weights yet.
    """
    for name, tensor in named_tensors(model).items():
        if is_lazy(tensor):
            raise ValueError(
                f"Expected a model with weights, found {name!r} of a lazy layer that has not run "
                "yet. Run the model once before: model(*example_inputs)."
            )
    return _Copier(shapes_only).model(model)


def own_storage(tensors: list[Tensor]) -> None:
    """Give tensors of a twin storage of their own, so that their values can be edited.

    Args:
        tensors: Of the twin; each may come more than once.
    """
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        tensor.data = tensor.data.clone()


class _Copier:
    """Copies modules, and everything that they hold, once each.

    :func:`copy.deepcopy` would not do: it follows a bound hook to its owner (a trainer, a wrapper)
    and copies that too, stops at the first lock, and lets a closure go on using the old model.
    """

    def __init__(self, shapes_only: bool) -> None:
        self._shapes_only = shapes_only
        self._new: dict[int, Any] = {}  # by the id of the old
        self._old: list[Any] = []  # keeps the ids valid
        self._unfilled: deque[nn.Module] = deque()

    def model(self, root: nn.Module) -> nn.Module:
        """The twin of a whole model."""
        # Every module before anything that may refer to one, every state before every call.
        modules = list(root.modules())
        for module in modules:
            self._shell(module)
        filled = []
        while self._unfilled:
            filled.append(self._unfilled.popleft())
            self._fill(filled[-1])
        for module in filled:
            self._fill_calls(module)
        new: nn.Module = self._new[id(root)]
        return new

    def _note(self, old: Any, new: Any) -> Any:
        self._new[id(old)] = new
        self._old.append(old)
        return new

    # ---------------------------------------------------------------- modules

    def _shell(self, module: nn.Module) -> nn.Module:
        """A module of the same class, still empty."""
        if id(module) in self._new:
            found: nn.Module = self._new[id(module)]
            return found
        if isinstance(module, torch.jit.ScriptModule):
            new = module
            with suppress(Exception), torch.no_grad():  # in C++, and with weights of its own
                new = copy.deepcopy(module)
            for old, made in zip(module.modules(), new.modules(), strict=True):
                self._note(old, made)
            return new
        self._unfilled.append(module)
        # Not __init__, and not __new__ either, with which GraphModule makes one more class.
        shell: nn.Module = self._note(module, object.__new__(type(module)))
        return shell

    def _fill(self, module: nn.Module) -> None:
        """Copy what a module holds, but for what is called."""
        space, shared = vars(self._new[id(module)]), _left_out(module)
        for name, value in vars(module).items():
            if type(value) in _NUMBERS:
                space[name] = value
            elif name in _HOOKS:
                space[name] = type(value)()
            elif name == "_compiled_call_impl":  # would run the original
                space[name] = None
            elif name in shared or isinstance(value, _CALLS):
                space[name] = value
            else:
                space[name] = self._copy(value)

    def _fill_calls(self, module: nn.Module) -> None:
        """Rebind forward hooks and patched methods, now that all they may be bound to is there."""
        space = vars(self._new[id(module)])
        for name, value in vars(module).items():
            if name in _HOOKS:
                if value and "forward" in name:
                    hooks = ((k, self._or_shared(self._hook, v)) for k, v in value.items())
                    space[name].update(hooks)
            elif isinstance(value, _CALLS):
                space[name] = self._or_shared(self._follow, value)

    def _or_shared(self, make: Callable[[Any], Any], value: Any) -> Any:
        try:
            return make(value)
        except Exception:  # whatever cannot be copied is shared
            return value

    def _hook(self, hook: Any) -> Any:
        """A hook: a function, or an object that computes, such as an old-style weight norm."""
        if isinstance(hook, (*_CALLS, *_PLAIN)) or id(hook) in self._new:
            return self._follow(hook)
        new = copy.copy(hook)
        if new is not hook:
            vars(new).update((name, self._follow(value)) for name, value in vars(hook).items())
        return new

    # ---------------------------------------------------------------- state

    def _copy(self, value: Any) -> Any:
        """A copy of what belongs to the model."""
        if type(value) in _NUMBERS:
            return value
        if id(value) in self._new:
            return self._new[id(value)]
        return value if isinstance(value, _PLAIN) else self._or_shared(self._copy_new, value)

    def _copy_new(self, value: Any) -> Any:
        if isinstance(value, (*_CALLS, weakref.ref)):
            return self._follow(value)
        if isinstance(value, Tensor):
            return self._note(value, self._tensor(value))
        if isinstance(value, (dict, list, deque, tuple, set, frozenset)):
            return self._container(value, self._copy)
        if isinstance(value, nn.Module):
            return value if _is_world(value) else self._shell(value)
        if isinstance(value, torch.Generator):
            state = torch.Generator(device=value.device).set_state(value.get_state())
            return self._note(value, state)
        return value if _is_world(value) else self._object(value)

    def _tensor(self, old: Tensor) -> Tensor:
        if _is_parameter(old):
            return _parameter(old, without_values(old.data) if self._shapes_only else old.data)
        if self._shapes_only and old.is_floating_point():
            return without_values(old.detach())
        return _tensor(old)

    def _object(self, value: Any) -> Any:
        """Any other object, and what it holds."""
        new = copy.copy(value)  # raises for a lock, a file, a process group
        if new is value or not hasattr(new, "__dict__"):
            return self._note(value, new)
        self._note(value, new)
        vars(new).update((name, self._copy(held)) for name, held in vars(value).items())
        return new

    def _container(self, value: Any, each: Callable[[Any], Any]) -> Any:
        if not value and type(value) in (dict, list, tuple, set):
            return value if type(value) is tuple else self._note(value, type(value)())
        if isinstance(value, tuple):
            if all(type(item) in _NUMBERS for item in value):  # sizes, strides
                return value
            items = [each(item) for item in value]
            if all(new is old for new, old in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, (set, frozenset)):
            return self._note(value, type(value)(each(item) for item in value))
        new = self._note(value, copy.copy(value))
        if isinstance(value, dict):
            items_of = [(each(key), each(held)) for key, held in value.items()]
            new.clear()
            new.update(items_of)
        else:
            for index, item in enumerate(value):
                new[index] = each(item)
        if hasattr(value, "__dict__"):
            vars(new).update((name, each(held)) for name, held in vars(value).items())
        return new

    # ---------------------------------------------------------------- references

    def _follow(self, value: Any) -> Any:
        """The same reference, to the twin's part where it leads to a part of the model."""
        if id(value) in self._new:
            return self._new[id(value)]
        if not self._leads_here(value, set()):
            return value
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self._follow(value.__self__))
        if isinstance(value, weakref.ref):
            return weakref.ref(self._follow(value()))
        if isinstance(value, partial):
            keywords = {name: self._follow(held) for name, held in value.keywords.items()}
            new: Any = partial(self._follow(value.func), *map(self._follow, value.args), **keywords)
            vars(new).update((name, self._follow(held)) for name, held in vars(value).items())
            return self._note(value, new)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._container(value, self._follow)

    def _function(self, old: types.FunctionType) -> types.FunctionType:
        """A function whose closure and defaults hold the twin's parts."""
        cells = tuple(types.CellType() for _ in old.__closure__ or ())
        ours = {n: self._new[id(m)] for n, m in _global_modules(old).items() if id(m) in self._new}
        scope = {**old.__globals__, **ours} if ours else old.__globals__
        new = types.FunctionType(old.__code__, scope, old.__name__, None, cells or None)
        self._note(old, new)  # before its cells: it may hold itself
        new.__defaults__ = self._follow(old.__defaults__)
        new.__kwdefaults__ = self._follow(old.__kwdefaults__)
        vars(new).update((name, self._follow(held)) for name, held in vars(old).items())
        new.__qualname__, new.__module__ = old.__qualname__, old.__module__
        for cell, before in zip(cells, old.__closure__ or (), strict=True):
            with suppress(ValueError):  # an empty cell
                cell.cell_contents = self._follow(before.cell_contents)
        return new

    def _leads_here(self, value: Any, seen: set[int]) -> bool:
        """Whether a reference leads to something that has been copied."""
        if id(value) in self._new:
            return True
        if isinstance(value, _PLAIN) or id(value) in seen:
            return False
        seen.add(id(value))
        return any(self._leads_here(held, seen) for held in _held(value))


def _held(value: Any) -> list[Any]:
    """What a call, a container or a weak reference refers to; nothing of other objects."""
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords, vars(value)]
    if isinstance(value, types.FunctionType):
        held: list[Any] = [value.__defaults__, value.__kwdefaults__, vars(value)]
        held += _global_modules(value).values()
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty cell
                held.append(cell.cell_contents)
        return held
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, deque, tuple, set, frozenset)) else []


def _global_modules(function: types.FunctionType) -> dict[str, nn.Module]:
    """Modules that a function finds by a global name: ``model.forward = lambda x: model.fc(x)``."""
    names, scope = function.__code__.co_names, function.__globals__
    return {n: scope[n] for n in names if isinstance(scope.get(n), nn.Module)}


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and value.is_leaf


def without_values(tensor: Tensor) -> Tensor:
    """The shape of a tensor of floating-point numbers; any other as it is.

    Args:
        tensor: Without a gradient.
    """
    if type(tensor) is not Tensor or not tensor.is_floating_point():
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _parameter(old: Tensor, data: Tensor) -> Tensor:
    """A new parameter on the storage of ``data``."""
    # .data, unlike detach(), has a version of its own: no edit of one is counted by the other.
    if nn.Parameter in type(old).__mro__:
        new = torch.Tensor._make_subclass(type(old), data, old.requires_grad)
    else:  # a tensor subclass that poses as a parameter
        new = nn.Parameter(data, old.requires_grad)
    vars(new).update(vars(old))
    return new


def _tensor(old: Tensor) -> Tensor:
    """A copy without the graph that a computed tensor hangs on."""
    new = old.detach().clone()
    return new.requires_grad_() if old.is_leaf and old.requires_grad else new


def _is_world(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, nn.Module):
        return bool(_WRAPPERS.intersection(base.__name__ for base in kind.__mro__))
    room = kind.__module__.partition(".")[0]
    return isinstance(value, _WORLDS) or room in {"decayprune", "weakref", "threading"}


def _left_out(module: nn.Module) -> set[str]:
    """What a module itself leaves out of its copies: a Lightning module its trainer."""
    own = getattr(type(module), "__getstate__", None)
    if own is None or own in _PLAIN_STATES:
        return set()
    try:
        state = own(module)
    except Exception:  # a parametrised module refuses to be pickled
        return set()
    if not isinstance(state, dict):
        return set()
    return {name for name, value in vars(module).items() if state.get(name) is not value}
