"""Find the residual branches of a model: what an addition could do without.

One pass is recorded call by call. Where one operand of an addition was computed from the other
(or, where several branches are added in turn, from what those were added to), it is the end of a
branch. What the model's outputs no longer need once the addition adds nothing is dead, and the
modules that did nothing else can leave: no pattern of blocks is known here, and none is needed.
Whether a branch can really be removed is tried later, on a twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from decayprune.structures.example import ExampleInputs, arguments, quiet, returned
from decayprune.structures.structure_map import Bypassed, Refusal
from decayprune.structures.tracing.call import canonical, tensors_in
from decayprune.structures.tracing.rules.elementwise import MOVES_ZERO, words
from decayprune.structures.tracing.scripts import is_script
from decayprune.structures.twin import twin

_GATES = words(
    """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm mul
    batch_norm layer_norm rms_norm group_norm instance_norm multi_head_attention_forward
    """
)
"""Calls that give zeros when their parameters are zeros."""
_ENDS = frozenset(
    [
        *MOVES_ZERO,
        *words("add sub cat stack softmax where masked_fill matmul bmm einsum input"),
        *(name for name in _GATES if name != "mul"),
    ]
)
"""What may make something else of zeros, or take them from two places."""
_SHAPES = ("size", "dim", "numel", "stride", "ndimension", "nelement", "element_size")


@dataclass(frozen=True)
class FoundBranch:
    """A residual branch.

    Attributes:
        name: Of the module at its end.
        gate: Parameters of its last layer: with zeros in them it adds nothing.
        bypassed: The modules that leave with it, in the order in which they ran.
    """

    name: str
    gate: tuple[str, ...]
    bypassed: tuple[Bypassed, ...]


@dataclass(eq=False)
class _Node:
    """One call: the calls whose results it read, and the modules that were running."""

    name: str
    reads: tuple[int, ...]
    parameters: tuple[str, ...]
    stack: tuple[str, ...]
    shape: torch.Size | None
    sink: bool
    """Something unknown may have been done with its result."""


@dataclass(eq=False)
class _Record(TorchFunctionMode):
    """The calls of one pass, numbered in their order."""

    names: dict[int, str]
    nodes: list[_Node] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    items: dict[str, int | None] = field(default_factory=dict)
    """How each module returned: length of a tuple, 0 for a tensor, None for anything else."""
    order: list[str] = field(default_factory=list)
    _made: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = list(tensors_in((args, kwargs)))
        name, reads = canonical(func), tuple(self.numbers(read))
        shapes = name.startswith(("get:", "is_")) or name in _SHAPES
        own = [] if shapes else [self.names[id(t)] for t in read if id(t) in self.names]
        out = func(*args, **kwargs)
        made = list(tensors_in(out))
        written = name == "setitem" or kwargs.get("out") is not None
        shape = out.shape if isinstance(out, Tensor) else None
        sink = bool(read) and not (made or shapes or written)
        node = _Node(name, reads, tuple(own), tuple(self.stack), shape, sink)
        self.nodes.append(node)
        for tensor in (*made, *(read[:1] if written else ())):
            # The tensor is kept, so that nobody else gets its identity.
            self._made[id(tensor)] = tensor, len(self.nodes) - 1
        return out

    def given(self, tensors: Sequence[Tensor]) -> None:
        """Number the model's inputs like the results of calls."""
        for tensor in tensors:
            self._made[id(tensor)] = tensor, len(self.nodes)
            self.nodes.append(_Node("input", (), (), (), tensor.shape, False))

    def numbers(self, tensors: Sequence[Any]) -> Iterator[int]:
        """The calls that tensors came from."""
        for tensor in tensors:
            if id(tensor) in self._made:
                yield self._made[id(tensor)][1]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which modules run, and how they return."""
        handles = []

        def enter(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self.stack.append(name)
                self.order.append(name)

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, out: Any) -> None:
                self.stack.pop()
                plain = isinstance(out, (Tensor, tuple))
                number = len(out) if isinstance(out, tuple) else 0
                self.items[name] = number if plain else None

            return hook

        for name, module in model.named_modules():
            if not is_script(module):
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def residual_branches(
    model: nn.Module, example_inputs: ExampleInputs
) -> tuple[list[FoundBranch], list[Refusal]]:
    """Every residual branch of a model, and those of which the end cannot be gated.

    Args:
        model: A twin of it runs once, in evaluation mode.
        example_inputs: What to run it on.
    """
    copy = twin(model)
    parameters = dict(copy.named_parameters())
    record = _Record({id(parameter): name for name, parameter in parameters.items()})
    args, kwargs = arguments(example_inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it computes past the modules
        record.given(list(tensors_in((args, kwargs))))
        with quiet(copy), record.watching(copy), record:
            outputs = list(returned(copy(*args, **kwargs)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return _Search(copy, record, list(record.numbers(outputs))).run()


class _Search:
    """Looks through a record for additions that could do without an operand.

    Args:
        model: What ran.
        record: The calls.
        outputs: The calls that made the model's outputs.
    """

    def __init__(self, model: nn.Module, record: _Record, outputs: list[int]) -> None:
        self._modules, self._nodes = dict(model.named_modules()), record.nodes
        self._items, self._order = record.items, list(dict.fromkeys(record.order))
        self._roots = [*outputs, *(n for n, node in enumerate(record.nodes) if node.sink)]
        uses = [name for node in record.nodes for name in node.parameters]
        self._shared = {name for name in uses if uses.count(name) > 1}
        self._calls: dict[str, list[int]] = {}
        for number, node in enumerate(self._nodes):
            for module in set(node.stack):
                self._calls.setdefault(module, []).append(number)

    def run(self) -> tuple[list[FoundBranch], list[Refusal]]:
        """The branches, in the order of their ends, and what is none and why."""
        found: list[FoundBranch] = []
        refused: dict[str, str] = {}
        for number, node in enumerate(self._nodes):
            end = self._end_of_branch(node) if node.name == "add" else None
            if end is None:
                continue
            needed, alive = self._behind([end]), self._behind(self._roots, (number, end))
            if not (gone := self._bypassed(needed - alive, alive)):
                continue
            if not any(list(self._modules[name].parameters()) for name in gone):
                continue
            gate = self._gate(end, gone)
            reason = self._problem(gone, gate, found)
            if reason:
                refused[gone[-1]] = reason
            else:
                found.append(self._branch(gone, gate, alive))
        return found, [Refusal(name, 0, reason) for name, reason in refused.items()]

    # ---------------------------------------------------------------- additions

    def _end_of_branch(self, node: _Node) -> int | None:
        """The operand that was computed from what the other one is, or was added to."""
        if len(node.reads) != 2:
            return None
        shapes = [self._nodes[operand].shape for operand in node.reads]
        if shapes[0] != node.shape or shapes[1] != node.shape:
            return None
        for stream, end in (node.reads, node.reads[::-1]):
            before = self._behind([end]) - {end}
            if any(one in before for one in self._summands(stream)):
                return end
        return None

    def _summands(self, number: int) -> Iterator[int]:
        """A sum and what it was added up from, one addition after the other."""
        yield number
        node = self._nodes[number]
        if node.name == "add":
            for operand in node.reads:
                yield from self._summands(operand)

    def _behind(self, roots: Sequence[int], without: tuple[int, int] = (-1, -1)) -> set[int]:
        """All calls that some need, themselves included; an addition may do without an operand."""
        seen, waiting = set(roots), list(roots)
        while waiting:
            number = waiting.pop()
            for read in self._nodes[number].reads:
                if read not in seen and (number, read) != without:
                    seen.add(read)
                    waiting.append(read)
        return seen

    # ---------------------------------------------------------------- what leaves

    def _bypassed(self, dead: set[int], alive: set[int]) -> list[str]:
        """The outermost modules that work for nothing but the branch, in their order."""

        def leaves(name: str) -> bool:
            calls = self._calls.get(name, ())
            return bool(name) and not dead.isdisjoint(calls) and alive.isdisjoint(calls)

        inside = [name for name in self._order if leaves(name)]
        return [n for n in inside if not any(n.startswith(f"{other}.") for other in inside)]

    def _gate(self, end: int, gone: Sequence[str]) -> list[str]:
        """Parameters of the last layer, with zeros in which zeros arrive at the end."""
        node = self._nodes[end]
        own = list(node.parameters)
        if node.name == "multi_head_attention_forward":
            own = [name for name in own if ".out_proj." in f".{name}"]
        inside = all(any(n.startswith(f"{module}.") for module in gone) for n in own)
        if own and inside and node.name in _GATES:
            return own
        if node.name == "add" and len(node.reads) == 2 and not own:  # branches side by side
            gates = [self._gate(read, gone) for read in node.reads]
            return gates[0] + gates[1] if all(gates) else []
        if node.name in _ENDS:
            return []
        for read in node.reads if node.name == "mul" else node.reads[:1]:
            if gate := self._gate(read, gone):
                return gate
        return []

    def _branch(self, gone: Sequence[str], gate: Sequence[str], alive: set[int]) -> FoundBranch:
        ends = [name for name in gone if any(one.startswith(f"{name}.") for one in gate)]
        first = [n for n in gone if any(not alive.isdisjoint(c.reads) for c in self._within(n))]
        bypassed = [Bypassed(n, n in (*ends, *first), self._items[n] or 0) for n in gone]
        return FoundBranch(ends[0], tuple(gate), tuple(bypassed))

    def _within(self, name: str) -> Iterator[_Node]:
        return (self._nodes[number] for number in self._calls[name])

    def _problem(
        self, gone: Sequence[str], gate: Sequence[str], found: Sequence[FoundBranch]
    ) -> str:
        """Why a branch is left alone; empty if it is not."""
        inner = {item.module for branch in found for item in branch.bypassed}
        if any(name == one or one.startswith(f"{name}.") for name in gone for one in inner):
            return "it holds other residual branches, which can leave one by one"
        if not gate:
            return "no layer is known at its end that makes it add zeros"
        if not self._shared.isdisjoint(gate):
            return "the weights at its end are used elsewhere, too"
        if odd := [name for name in gone if self._items.get(name) is None]:
            return f"`{odd[0]}` returns neither a tensor nor a tuple"
        if any(_keeps_a_cache(module) for n in gone for module in self._modules[n].modules()):
            return "generation counts tokens by its key/value cache"
        return ""


def _keeps_a_cache(module: nn.Module) -> bool:
    """Whether this is an attention of a decoder in transformers, with a cache of its number."""
    decodes = getattr(module, "is_causal", False) or getattr(module, "is_decoder", False)
    return bool(decodes) and getattr(module, "layer_idx", None) is not None
