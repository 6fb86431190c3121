"""Trace a model once and find its structures.

The model runs on example inputs under a :class:`torch.overrides.TorchFunctionMode`; every call
goes through the rule of its kind, which moves labels from inputs to outputs. An operator without
a rule fixes every width that enters it and is named in the result; nothing is guessed.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from decayprune.structures.exact.swap import is_window_attention, normalisers_shown
from decayprune.structures.exact.window_attention import HeadwiseWindowAttention
from decayprune.structures.example import (
    arguments,
    batch_size,
    plain_arithmetic,
    random_state_kept,
    refusal,
    returned,
)
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.tracing.assemble import assemble
from decayprune.structures.tracing.call import Call, canonical, in_words, tensors_in
from decayprune.structures.tracing.rules.attention import HEADS
from decayprune.structures.tracing.rules.constants import CONSTANTS
from decayprune.structures.tracing.rules.elementwise import RULES, words
from decayprune.structures.tracing.rules.layers import LAYERS
from decayprune.structures.tracing.rules.movement import MOVEMENT
from decayprune.structures.tracing.rules.normalisers import NORMALISERS
from decayprune.structures.tracing.rules.picking import PICKING
from decayprune.structures.tracing.rules.products import CONTRACTIONS, left_alone
from decayprune.structures.tracing.rules.recurrent import RECURRENT
from decayprune.structures.tracing.rules.reductions import REDUCING
from decayprune.structures.tracing.rules.rewritten import REWRITTEN
from decayprune.structures.tracing.rules.shuffles import WINDOWS
from decayprune.structures.tracing.rules.vision import VISION
from decayprune.structures.tracing.scripts import is_script, scripts_shown
from decayprune.structures.tracing.sizes import einops_uncached
from decayprune.structures.tracing.tape import Tape
from decayprune.structures.tracing.unreached import protected
from decayprune.structures.twin import twin, without_values

_RULES = {
    **RULES,
    **REDUCING,
    **CONSTANTS,
    **MOVEMENT,
    **WINDOWS,
    **LAYERS,
    **NORMALISERS,
    **CONTRACTIONS,
    **PICKING,
    **REWRITTEN,
    **VISION,
    **HEADS,
    **RECURRENT,
}

_ASKS_FOR_SHAPES = words(
    "get:shape size dim stride numel len ndimension nelement is_floating_point is_complex "
    "new_zeros new_ones new_empty new_full zeros_like ones_like full_like empty_like rand_like "
    "randn_like"
)
"""What reads no values: a slice that is only asked for its shape fixes nothing."""


def trace(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    ignored_layers: Iterable[str | nn.Module] = (),
) -> StructureMap:
    """Find every structure of a model.

    The model is run once in eval mode without gradients (a second time in train mode if that
    reaches further layers, such as auxiliary heads), and not itself: a twin of it runs.

    Args:
        model: Any module. It is not changed.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments.
        ignored_layers: Names, globs (``"head.*"``) or modules; the widths they *produce* are left
            alone. A container stands for every layer inside it.

    Returns:
        The structures, what is left alone and why, and what the model computes.

    Raises:
        ValueError: The model does not run on the example inputs, or an ignored layer matches
            nothing. That nothing is prunable is not an error here: the map is then empty.
    """
    ignored = ignored_names(model, ignored_layers)
    args, kwargs = arguments(example_inputs)
    _check_devices(model, (args, kwargs))
    tape = _first_that_runs(model, args, kwargs)
    structures = assemble(tape, ignored, batch_size(example_inputs))
    lost = protected(structures, tape.model, tape.unseen())
    return structures.without(lost) if lost else structures


def _first_that_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tape:
    """The record of the cheapest pass that a model takes."""
    with suppress(Exception):  # a model that reads a value: whether anything was found, a mask
        shapes = tree_map(_shape, (args, kwargs))
        return _taped(model, *shapes, shapes_only=True)
    with suppress(Exception):  # what computes with an integer may want no other class of it
        return _taped(model, args, kwargs)
    return _taped(model, args, kwargs, with_sizes=False)


def _shape(value: Any) -> Any:
    return without_values(value.detach()) if isinstance(value, Tensor) else value


def _taped(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    with_sizes: bool = True,
    shapes_only: bool = False,
) -> Tape:
    """The record of a pass through a twin, and of one in train mode if that reaches further."""
    # Classes, hooks, modes and buffers change: never those of a living model.
    copy = twin(model, shapes_only=shapes_only)
    tape = Tape(copy, shapes_only)
    with (
        normalisers_shown(copy),
        _names_of_running_modules(tape),
        scripts_shown(tape),
        random_state_kept(copy),
        einops_uncached(),
        torch.no_grad(),
    ):
        if with_sizes:
            tape.readings.note(copy)
        copy.eval()
        _run(tape, args, kwargs)
        if tape.unseen():
            _train_mode_without_statistics(copy)
            tape.counting = False
            # What it would have reached is listed as not reached.
            with nullcontext() if shapes_only else suppress(ValueError):
                _run(tape, args, kwargs)
    _note_windows(tape)
    tape.readings.tie(tape.partition)
    return tape


class _Tracer(TorchFunctionMode):
    """Sends every torch function to the rule of its kind."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = canonical(func)
        call = Call(self.tape, func, name, args, kwargs or {}, self)
        for values in (args, call.kwargs.values()):
            self.tape.seen.update(map(id, values))
            self.tape.seen.update(
                id(v) for group in values if isinstance(group, (list, tuple)) for v in group
            )
        if not self.tape.behind_weights.isdisjoint(map(id, args)):
            return call.run()  # on the way to a computed weight, of which the layer's rule knows
        rule = _RULES.get(name)
        if rule is None and name.startswith("get:"):
            return call.run()
        if self.tape.shapes_only and _picks_by_unknown_numbers(call):
            raise NotImplementedError(f"{name} with numbers that are not computed")
        if self.tape.pending and name not in _ASKS_FOR_SHAPES:
            self.tape.used(call.tensors())
        if rule is not None and call.kwargs.get("out") is None:  # torch.norm names it, as None
            return rule(call)
        if not any(self.tape.mark(t) is not None for t in call.tensors()):
            return call.run()
        if _is_composite(func):
            with self:
                return _body(func)(*args, **call.kwargs)
        return left_alone(call)


def _picks_by_unknown_numbers(call: Call) -> bool:
    """Whether labels would follow an index or a mask without values, which torch lets pass."""
    tensors = call.tensors()
    if all(t.is_floating_point() or not t.is_meta for t in tensors):
        return False
    return any(call.tape.mark(t) is not None or call.tape.view(t) is not None for t in tensors)


def _is_composite(func: Callable[..., Any]) -> bool:
    return isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional"


def _body(func: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function of ``torch.nn.functional`` that does not dispatch on itself again."""
    scope = dict(func.__globals__)
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        scope[name] = lambda *args: False
    copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _run(tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model under the tracer and protect what it returns."""
    tape.partition.blame = tape.where
    try:
        # Autocast would run layers on copies of their weights. Inside the tracer, so that what the
        # rules compute does not pass through it.
        with _Tracer(tape), plain_arithmetic(), torch.no_grad():
            outputs = tape.model(*args, **kwargs)
    except Exception as error:
        if tape.shapes_only:
            raise
        where = tape.stack[-1] if tape.stack else ""
        tape.stack.clear()
        try:
            tape.model(*args, **kwargs)
        except Exception:  # the model's own error, not one of a rule
            raise ValueError(_did_not_run(tape, args, kwargs, error, where)) from error
        raise
    finally:
        tape.partition.blame = str
    caches = getattr(getattr(tape.model, "config", None), "use_cache", False) is True
    tape.used(returned(outputs))
    for value in returned(outputs):
        as_cache = caches and value.dim() == 4  # (batch, heads, tokens, width)
        hint = " (if that is its key/value cache, pass use_cache=False)" if as_cache else ""
        tape.fix([value], f"the model's output{hint}")


@contextmanager
def _names_of_running_modules(tape: Tape) -> Iterator[None]:
    """Keep :attr:`Tape.stack` up to date with temporary hooks."""
    handles = []
    for name, module in tape.modules.items():
        if is_script(module):
            continue  # takes no hooks

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            tape.stack.append(name)

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            if tape.stack:
                tape.stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note_windows(tape: Tape) -> None:
    """Attention in windows keeps its widths as numbers, which no operator shows."""
    for name, module in tape.modules.items():
        if not (is_window_attention(module) or isinstance(module, HeadwiseWindowAttention)):
            continue
        inside, joined = (tape.known(m.weight, 1) for m in (module.qkv, module.proj))
        if inside is not None:  # only the stand-in has this attribute
            tape.attributes.append((name, "dim", inside, 1))
        if joined is not None:
            tape.attribute(name, "num_heads", joined.view(module.num_heads, -1)[:, 0])


def _train_mode_without_statistics(model: nn.Module) -> None:
    """Train mode, but normalisers keep their statistics: a batch of one is enough."""
    model.train()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase,)):
            module.eval()


def _check_devices(model: nn.Module, inputs: Any) -> None:
    """Raise where the inputs lie on another device than the (only) one of the model."""
    own = {p.device for p in model.parameters()}
    for value in tensors_in(inputs):
        if len(own) == 1 and value.device not in own:
            raise ValueError(
                f"Expected example_inputs on the model's device {next(iter(own))}, found a tensor "
                f"on {value.device}. Move them: example_inputs.to({str(next(iter(own)))!r})."
            )


def _did_not_run(tape: Tape, args: Any, kwargs: Any, error: Exception, where: str) -> str:
    """What was passed, what the first layer expects, what went wrong."""
    first = next(iter(tape.holders()), None)
    expects = ""
    if first is not None:
        weight = next(tape.modules[first].parameters(recurse=False))
        expects = (
            f" Its first layer is `{first}`: {tape.modules[first]}, with parameters in "
            f"{weight.dtype} on {weight.device}."
        )
    running = f" in `{where}`" if where else ""
    return (
        f"The model does not run on example_inputs. Passed: {in_words((args, kwargs))}."
        f"{expects} It raised{running}: {refusal(error)}. "
        "Pass inputs that `model(*example_inputs)` accepts; use a dict for keyword arguments."
    )


def ignored_names(model: nn.Module, layers: Iterable[str | nn.Module]) -> set[str]:
    """Names of all modules that the given names, globs and modules stand for.

    Args:
        model: The model.
        layers: As ``ignored_layers`` are given.

    Raises:
        ValueError: One of them matches nothing.
        TypeError: One is neither a name nor a module.
    """
    if isinstance(layers, (str, nn.Module)):
        layers = [layers]
    by_id = {id(module): name for name, module in model.named_modules()}
    names = list(by_id.values())
    found: set[str] = set()
    for layer in layers:
        if isinstance(layer, nn.Module):
            if id(layer) not in by_id:
                raise ValueError(
                    f"Expected ignored_layers to be modules of the model, found a "
                    f"{type(layer).__name__} that is not part of it. Pass `model.<layer>` itself."
                )
            hits = [by_id[id(layer)]]
        elif isinstance(layer, str):
            hits = fnmatch.filter(names, layer)
        else:
            raise TypeError(
                "ignored_layers takes names, globs and modules, such as ['fc', 'stages.*']; found "
                f"{layer!r}."
            )
        if not hits:
            near = difflib.get_close_matches(str(layer), names, n=3, cutoff=0.4)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"Expected a name or glob of a layer in ignored_layers, found {layer!r}, "
                f"which matches nothing.{hint}"
            )
        found.update(
            n for n in names for hit in hits if n == hit or n.startswith(f"{hit}.") or hit == ""
        )
    return found
