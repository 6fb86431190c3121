"""Talking to a Torch-Pruning pruner: what would it remove, and removing what we decided.

The pruner's own selection removes as it goes, so it is let loose on the live model under a
:class:`Snapshot` that puts everything back, object for object. Which structures went is read from
the groups it yields, and proven: the tensors it left must equal the cut of exactly those
structures. Nothing here imports Torch-Pruning; pruners come in as objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from decayprune.structures.structure_map import FIXED, Slice, StructureMap
from decayprune.structures.twin import named_tensors

_READ_LATER = (
    "_saved_dim",
    "_saved_self_sizes",
    "_saved_self_sym_sizes",
    "_saved_split_size",
    "_saved_split_sizes",
)


def release_autograd(pruner: Any) -> None:
    """Let a pruner keep the few sizes that it reads from the autograd graph, not the graph.

    The graph holds the gradient accumulator of every parameter, and with it the parameter's old
    shape: a cut parameter that keeps its identity could not be trained.
    """
    for module, node in pruner.DG.module2node.items():
        held = node.grad_fn
        if held is None or isinstance(held, SimpleNamespace):
            continue
        names = [name for name in _READ_LATER if hasattr(held, name)]
        node.grad_fn = SimpleNamespace(**{name: getattr(held, name) for name in names})
        for attribute in ("grad_fn", "_grad_fn"):
            value = getattr(module, attribute, None)
            if isinstance(module, nn.Module) and hasattr(value, "next_functions"):
                setattr(module, attribute, node.grad_fn)


def own_channel_groups(pruner: Any) -> None:
    """Give a pruner dictionaries of its own, with its own modules only.

    ``in_channel_groups``, ``out_channel_groups`` and ``num_heads`` are mutable default arguments
    in Torch-Pruning 1.6.1: every pruner of a process writes into the same three.
    """
    modules = set(pruner.model.modules())
    for name in ("in_channel_groups", "out_channel_groups", "num_heads"):
        held = getattr(pruner, name)
        setattr(pruner, name, {m: value for m, value in held.items() if m in modules})


class Snapshot:
    """Everything that Torch-Pruning's own removal changes, to put it back.

    Args:
        pruner: A pruner and, through it, its model and dependency graph.
    """

    def __init__(self, pruner: Any) -> None:
        nodes = pruner.DG.module2node
        modules = [*pruner.model.modules(), *(m for m in nodes if isinstance(m, nn.Module))]
        bare = [node for module, node in nodes.items() if not isinstance(module, nn.Module)]
        objects = [pruner, pruner.DG, pruner.importance, *dict.fromkeys(modules), *bare]
        self._held = [
            (vars(o), {k: (v, _contents(v)) for k, v in vars(o).items()})
            for o in objects
            if hasattr(o, "__dict__")
        ]

    def restore(self) -> None:
        """Put everything back."""
        for space, held in self._held:
            for name in [name for name in space if name not in held]:
                del space[name]
            for name, (value, contents) in held.items():
                space[name] = value
                _refill(value, contents)

    def restore_tensors(self) -> None:
        """Put the parameters and buffers back, and leave widths as they are now."""
        names = {"_parameters", "_buffers", "module2node", "_param_to_name", "module"}
        for space, held in self._held:
            for name in names & held.keys():
                value, contents = held[name]
                if name != "module" or isinstance(value, nn.Parameter):
                    space[name] = value
                    _refill(value, contents)


def _contents(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list | set) else None


def _refill(value: Any, contents: Any) -> None:
    if contents is None:
        return
    value.clear()
    if isinstance(value, list):
        value.extend(contents)
    else:
        value.update(contents)


# ---------------------------------------------------------------- rows and roots


class Root(NamedTuple):
    """Where Torch-Pruning takes hold of one group: a layer, and which side of it."""

    layer: str
    out: bool


def channel_labels(structures: StructureMap, module: nn.Module, name: str, out: bool) -> Tensor:
    """Structure of each channel on one side of a layer, shape ``(channels,)``, or empty."""
    turned = bool(getattr(module, "transposed", False))
    dim = int(out == turned)
    for item in structures.slices:
        if item.name == f"{name}.weight" and item.dim == dim:
            return item.structure
    return torch.zeros(0, dtype=torch.int64, device="cpu")


def remove(pruner: Any, structures: StructureMap, roots: Mapping[int, Root], gone: Tensor) -> None:
    """Let Torch-Pruning remove structures from its model, widths, graph and all.

    Args:
        pruner: The pruner.
        structures: What is in the model now.
        roots: Where to take hold of each group, by its number.
        gone: Which structures leave, bool, shape ``(S,)``.
    """
    for number in sorted(set(structures.group_of[gone].tolist())):
        root = roots[number]
        module = pruner.model.get_submodule(root.layer)
        labels = channel_labels(structures, module, root.layer, root.out)
        leaving = gone & (structures.group_of == number)
        marked = torch.cat([leaving, torch.zeros(1, dtype=torch.bool, device="cpu")])[labels]
        function = pruner.DG.get_pruner_of_module(module)
        handler = function.prune_out_channels if root.out else function.prune_in_channels
        pruner.DG.get_pruning_group(module, handler, marked.nonzero().flatten().tolist()).prune()


def narrowed(structures: StructureMap, gone: Tensor) -> StructureMap:
    """The map of a model that has lost some structures; structures keep their numbers.

    Args:
        structures: The map before.
        gone: Which left, bool, shape ``(S,)``.
    """
    stays = torch.cat([~gone, torch.ones(1, dtype=torch.bool, device="cpu")])

    def cut(item: Slice) -> Slice:
        keep = stays[item.structure]
        return replace(item, structure=item.structure[keep], carrier=item.carrier[keep])

    slices = (cut(item) for item in structures.slices)
    return replace(
        structures,
        slices=tuple(item for item in slices if bool((item.structure != FIXED).any())),
        operators=tuple(
            replace(o, labels=tuple(v[stays[v]] for v in o.labels)) for o in structures.operators
        ),
        attributes=tuple((m, a, v[stays[v]], d) for m, a, v, d in structures.attributes),
    )


# ---------------------------------------------------------------- what it would remove


class Rehearsal:
    """A pruner's own steps, tried on the live model; use as a context, everything is put back.

    Args:
        pruner: The pruner.
        structures: What is in the model now.

    Attributes:
        removed: Structures removed so far, in order.
        roots: Where the pruner took hold of each group.
    """

    def __init__(self, pruner: Any, structures: StructureMap) -> None:
        self._pruner, self._structures = pruner, structures
        self._names = {module: name for name, module in pruner.model.named_modules()}
        self._channels: dict[tuple[nn.Module, bool], Tensor] = {}
        self.removed: list[int] = []
        self.roots: dict[int, Root] = {}

    def __enter__(self) -> Rehearsal:
        self._snapshot = Snapshot(self._pruner)
        self._before = {n: t.detach() for n, t in named_tensors(self._pruner.model).items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._snapshot.restore()

    def step(self) -> None:
        """One step of the pruner."""
        for group in self._pruner.step(interactive=True):
            self._record(group)
            group.prune()

    def push(self, share: float) -> None:
        """The last step again, with every ratio a little higher: what would go next.

        Args:
            share: How much higher, relative to the ratio.
        """
        pruner, now = self._pruner, self._pruner.current_step

        def higher(ratios: Any) -> list[float]:
            raised = list(ratios)
            raised[now] = min(raised[now] * (1 + share), 0.999)
            return raised

        pruner.per_step_pruning_ratio = higher(pruner.per_step_pruning_ratio)
        pruner.pruning_ratio_dict = {m: higher(r) for m, r in pruner.pruning_ratio_dict.items()}
        pruner.current_step = now - 1
        self.step()

    def _record(self, group: Any) -> None:
        structures = self._structures
        hit: dict[int, None] = {}
        for position, (dep, idxs) in enumerate(group):
            module = dep.target.module
            if module not in self._names or getattr(module, "weight", None) is None:
                continue
            if module.weight.dim() < 2:  # a norm has one side, and is nobody's root
                continue
            out = bool(self._pruner.DG.is_out_channel_pruning_fn(dep.handler))
            live = self._live(module, out)
            gone = live[list(idxs)]
            self._channels[module, out] = _without(live, idxs)
            if not out and position:
                continue
            labels = channel_labels(structures, module, self._names[module], out)
            labels = labels[gone] if labels.numel() else torch.full_like(gone, FIXED)
            self._check_free(labels, module)
            hit.update(dict.fromkeys(labels.tolist()))
            if position == 0 and hit:
                number = int(structures.group_of[next(iter(hit))])
                self.roots.setdefault(number, Root(self._names[module], out))
        self.removed += [s for s in hit if s not in self.removed]

    def _live(self, module: nn.Module, out: bool) -> Tensor:
        """Which channels of one side of a layer are left, as they were numbered before."""
        if (module, out) in self._channels:
            return self._channels[module, out]
        graph = self._pruner.DG
        return torch.arange(
            graph.get_out_channels(module) if out else graph.get_in_channels(module),
            device="cpu",
        )

    def _check_free(self, labels: Tensor, module: nn.Module) -> None:
        if not bool((labels == FIXED).any()):
            return
        name = self._names[module]
        reasons = {r.layer: r.reason for r in self._structures.refusals}
        raise ValueError(
            f"Torch-Pruning chose channels of {name!r}, which cannot be removed exactly and are "
            f"left alone here: {reasons.get(name, 'their width is fixed by the model')}. Put "
            f"that layer into the pruner's ignored_layers."
        )

    def check(self) -> None:
        """Prove that the pruner removed what was recorded, and nothing else.

        Raises:
            ValueError: It did not; names the first tensor that differs.
        """
        gone = torch.zeros(self._structures.num_structures + 1, dtype=torch.bool, device="cpu")
        gone[self.removed] = True
        expected = dict(self._before)
        for item in self._structures.slices:
            keep = (~gone[item.structure]).nonzero().flatten()
            value = expected[item.name]
            expected[item.name] = value.index_select(item.dim, keep.to(value.device))
        found = named_tensors(self._pruner.model)
        for name, value in expected.items():
            if name not in found or not torch.equal(found[name], value):
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise ValueError(
                    f"Torch-Pruning couples channels of {name!r} in another way than their "
                    f"removal allows: expected {tuple(value.shape)} to stay, found {shape}. Put "
                    "that layer into the pruner's ignored_layers."
                )


def _without(live: Tensor, idxs: Any) -> Tensor:
    keep = torch.ones(live.numel(), dtype=torch.bool, device="cpu")
    keep[list(idxs)] = False
    return live[keep]
