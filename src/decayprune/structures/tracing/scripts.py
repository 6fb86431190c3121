"""TorchScript inside a model: what it computes is not shown to a tracer, so it is an operator.

A ``ScriptFunction`` and a ``ScriptModule`` run in C++, past the torch-function protocol. While a
model is traced their calls are looked at here: what enters is fixed and the reason names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.jit._script import RecursiveScriptModule

from decayprune.structures.tracing.call import tensors_in
from decayprune.structures.tracing.tape import Tape


def is_script(module: nn.Module) -> bool:
    """Whether a module runs in C++: it takes no hooks."""
    return isinstance(module, torch.jit.ScriptModule)


@contextmanager
def scripts_shown(tape: Tape) -> Iterator[None]:
    """Have every call of a script function or module fix what enters it.

    Args:
        tape: Gets the reasons. Calls outside of its run are as ever.
    """
    names = {id(module): name for name, module in tape.modules.items() if is_script(module)}

    def function(script: Any) -> str:
        return f"unknown operator `{script.name}` (a function in TorchScript)"

    def module(script: Any) -> str:
        name = names.get(id(script), "")
        return f"unknown operator `{name or type(script).__name__}` (a module in TorchScript)"

    kinds: tuple[tuple[Any, Callable[[Any], str]], ...] = (
        (torch.jit.ScriptFunction, function),
        (RecursiveScriptModule, module),
    )
    before = [vars(kind).get("__call__") for kind, _ in kinds]
    try:
        for kind, describe in kinds:
            kind.__call__ = _shown(tape, kind.__call__, describe, names)
        yield
    finally:
        for (kind, _), call in zip(kinds, before, strict=True):
            if call is None:  # inherited
                del kind.__call__
            else:
                kind.__call__ = call


def _shown(
    tape: Tape, call: Callable[..., Any], describe: Callable[[Any], str], names: dict[int, str]
) -> Callable[..., Any]:
    def shown(script: Any, *args: Any, **kwargs: Any) -> Any:
        reason = describe(script)
        tape.fix(tensors_in((args, kwargs)), reason)
        if id(script) in names:
            _leave_whole(tape, names[id(script)], reason)
        return call(script, *args, **kwargs)

    return shown


def _leave_whole(tape: Tape, script: str, reason: str) -> None:
    """The parameters inside were met, and stay."""
    for name, parameter in tape.parameters.items():
        if name.startswith(f"{script}." if script else ""):
            tape.seen.add(id(parameter))
            if parameter.dim() > 1:
                tape.refused.append((name.rpartition(".")[0], parameter.shape[0], reason))
