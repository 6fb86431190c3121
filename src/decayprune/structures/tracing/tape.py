"""The tape: everything a traced forward pass says about a model's widths.

Rules (one short function per kind of operator) read the marks of their inputs and leave marks on
their outputs. What they learn on the way is written here: which dimension of which parameter
carries which labels, who scales what, which operators were counted, which module attributes follow
a width. Nothing is decided here; :mod:`decayprune.structures.tracing.assemble` does that at the
end.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.structures.structure_map import Role
from decayprune.structures.tracing.blame import running_line
from decayprune.structures.tracing.labels import Partition, along, compress, core, varying
from decayprune.structures.tracing.marks import Consumption, Key, LabelledDim, Mark
from decayprune.structures.tracing.reparametrised import Parts, computed, layer_of, parts_of
from decayprune.structures.tracing.sizes import Readings
from decayprune.structures.tracing.views import View


@dataclass(eq=False)
class Tape:
    """The record of a traced forward pass.

    Attributes:
        model: The model that runs.
        partition: The labels and what is known about them.
        labelled_dims: Every (parameter, dimension) that carries labels, in the order met.
        sources: What can scale an activation: a dimension of a parameter, or None (nothing
            scales it) with the labels of which that is true.
        moved: By source, what it adds to channels of zeros.
        consumptions: Where labelled channels are summed over.
        mixed: Labels whose values a normaliser mixes, and the module that does it.
        matrices: Labels that a reshape spread over two or more dimensions.
        heads: Labels of which an attention reads one per head, or a layer one per feature map.
        unpinned: Labels whose all-zero structure reaches a consumer as something else than 0.
        operators: (module, constant, label vectors) of each counted operator.
        attributes: (module, attribute, labels, divisor).
        readings: Attributes that were read as a width.
        passing: (module, labels) of widths that a module computes with, whatever it calls them.
        stack: Names of the modules that are running, outermost first.
        seen: Identities of everything that was an argument of a torch function.
        refused: (module, width, reason) of widths that never got labels.
        shapes_only: Whether activations have no values (:mod:`~.shapes`).
    """

    model: nn.Module
    shapes_only: bool = False
    partition: Partition = field(default_factory=Partition)
    labelled_dims: dict[Key, LabelledDim] = field(default_factory=dict)
    sources: list[tuple[Key | None, Tensor]] = field(default_factory=list)
    moved: dict[int, str] = field(default_factory=dict)
    consumptions: list[Consumption] = field(default_factory=list)
    mixed: list[tuple[Tensor, str]] = field(default_factory=list)
    matrices: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    unpinned: list[Tensor] = field(default_factory=list)
    operators: list[tuple[str, int, tuple[Tensor, ...]]] = field(default_factory=list)
    attributes: list[tuple[str, str, Tensor, int]] = field(default_factory=list)
    readings: Readings = field(default_factory=Readings)
    passing: list[tuple[str, Tensor]] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    refused: list[tuple[str, int, str]] = field(default_factory=list)
    counting: bool = True
    pending: dict[int, tuple[weakref.ref[Tensor], list[tuple[Tensor, str]]]] = field(
        default_factory=dict
    )
    """What to fix once the values of a tensor are read."""

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        self.parameters = dict(self.model.named_parameters())
        self.buffers = dict(self.model.named_buffers())
        self.parameter_ids = {id(tensor) for tensor in self.parameters.values()}
        named = [*self.buffers.items(), *self.parameters.items()]
        self._names = {id(tensor): name for name, tensor in named}
        self._raw: list[range] = []
        found = {name: parts_of(module) for name, module in self.modules.items()}
        self._parts = {name: parts for name, parts in found.items() if parts is not None}
        self.behind_weights = {id(t) for parts in self._parts.values() for t in parts.tensors()}
        self._marks: dict[int, tuple[weakref.ref[Tensor], Mark]] = {}
        self._views: dict[int, tuple[weakref.ref[Tensor], View]] = {}
        self._source_of: dict[Key, int] = {}

    # ---- activations -------------------------------------------------------------------------

    def mark(self, value: Any) -> Mark | None:
        """What is known of a tensor, a parameter that was moved included; None of any other."""
        found = self.marked(value)
        if found is None and (view := self._views.get(id(value))) is not None:
            return self.raw(value) if view[0]() is value else None
        return found

    def marked(self, value: Any) -> Mark | None:
        """What was said of a tensor so far."""
        # Marks hang on identities, as tensors compare by value. Python reuses the identity of a
        # tensor that died, so the reference tells whether it is still the same one.
        found = self._marks.get(id(value))
        return found[1] if found is not None and found[0]() is value else None

    def labels(self, value: Tensor) -> Tensor:
        """Labels of a tensor, all 0 if it carries none."""
        if (found := self.mark(value)) is not None:
            return found.labels
        return torch.zeros((), dtype=torch.int64, device="cpu").expand(value.shape)

    def put(
        self, out: Any, labels: Tensor, sources: frozenset[int] = frozenset(), zero: bool = True
    ) -> None:
        """Mark an activation. Labels of which one alone is left are fixed: it was picked."""
        if not isinstance(out, Tensor):
            return
        labels = compress(labels)
        if not varying(labels):
            # A call that picks one channel by its number has no dimension left to shrink along,
            # and would read a neighbour after a cut.
            self.partition.fix(labels, "one channel is picked out by its number")
            self._marks.pop(id(out), None)
            return
        self._marks[id(out)] = (weakref.ref(out), Mark(labels, sources, zero))

    def fix(self, values: Iterable[Any], reason: str) -> None:
        """Fix all labels of some tensors."""
        for value in values:
            found = self.mark(value)
            if found is not None:
                self.partition.fix(found.labels, reason)

    def where(self) -> str:
        """The module and the line of its code that run, in brackets."""
        layer = f"in `{self.stack[-1]}`" if self.stack and self.stack[-1] else ""
        found = ", ".join(filter(None, (layer, running_line("_run"))))
        return f" ({found})" if found else ""

    def fix_if_read(self, out: Tensor, labels: list[tuple[Tensor, str]]) -> None:
        """Fix labels once the values of a tensor are read, if they ever are."""
        self.pending[id(out)] = (weakref.ref(out), labels)

    def used(self, values: Iterable[Any]) -> None:
        """The values of tensors are read: what waited for that is fixed."""
        for value in values:
            found = self.pending.get(id(value))
            if found is not None and found[0]() is value:
                for labels, reason in self.pending.pop(id(value))[1]:
                    self.partition.fix(labels, reason)

    def channels(self, value: Tensor, dim: int, reason: str) -> Tensor:
        """Labels along one dimension, shape ``(width,)``; along the others nothing may vary."""
        labels = self.labels(value)
        dim %= value.dim()
        parts = [d for d in varying(labels) if d != dim]
        for d in parts:
            labels = self.partition.collapse(labels, d, reason)
        vector = core(labels, [dim]).reshape(-1)[: value.shape[dim]].contiguous()
        if parts and dim in varying(labels):  # a layer's outputs made a feature map: maps leave
            self.heads.append(vector)
        return vector

    # ---- parameters --------------------------------------------------------------------------

    def name(self, value: Any) -> str | None:
        """Qualified name of a parameter or buffer, moved or not; None for anything else.

        Of a weight that a weight norm or spectral norm computes, that of the parameter behind it.
        """
        if (parts := self.parts(value)) is not None:
            value = parts.whole
        found = self._views.get(id(value))
        if found is not None and found[0]() is value:
            value = found[1].parameter
        return self._names.get(id(value))

    def parts(self, value: Any) -> Parts | None:
        """What the running layer computes its weight from, if the value is that weight."""
        parts = self._parts.get(self.stack[-1]) if self.stack else None
        if parts is None or id(value) in self._names or not isinstance(value, Tensor):
            return None
        return parts if parts.whole.shape == value.shape else None

    def is_parameter(self, value: Any) -> bool:
        """Whether a tensor is a parameter, moved or not."""
        return self.name(value) in self.parameters

    def is_weight(self, value: Any) -> bool:
        """Whether a tensor is a parameter of two or more dimensions, moved or not."""
        view = self.view(value)
        return view is not None and view.zero and value.dim() > 1 and self.is_parameter(value)

    def view(self, value: Any) -> View | None:
        """Where the elements of a parameter or buffer lie, moved or not; None for anything else."""
        found = self._views.get(id(value))
        if found is not None and found[0]() is value:
            return found[1]
        return View(value) if id(value) in self._names and value.dim() else None

    def put_view(self, out: Any, view: View) -> None:
        """Say that a tensor is a parameter, moved."""
        if isinstance(out, Tensor) and id(out) not in self._names:
            self._views[id(out)] = (weakref.ref(out), view)

    def owner(self, value: Any) -> str:
        """Name of the module that holds a parameter, or else of the one that is running."""
        name = self.name(value)
        if name is None:
            return self.stack[-1] if self.stack else ""
        return layer_of(name)

    def holders(self) -> list[str]:
        """Modules that hold parameters of their own, in the order of the model."""
        return list(dict.fromkeys(name.rpartition(".")[0] for name in self.parameters))

    def unseen(self) -> list[str]:
        """Modules of which no parameter took part in anything that ran."""
        seen = {n.rpartition(".")[0] for n, p in self.parameters.items() if id(p) in self.seen}
        return [name for name in self.holders() if name not in seen]

    def known(self, value: Tensor, dim: int) -> Tensor | None:
        """Labels that a dimension of a parameter, moved or not, already carries."""
        name, axis = self._axis(value, dim)
        found = self.labelled_dims.get((name, axis[0])) if axis else None
        labels = None if found is None else found.labels
        return labels if labels is None or axis is None or axis[1] is None else labels[axis[1]]

    def _axis(self, value: Tensor, dim: int) -> tuple[str, tuple[int, Tensor | None] | None]:
        """Name of a parameter; which of its dimensions lies there, its indices (None: all)."""
        if (parts := self.parts(value)) is not None:
            value = parts.whole
        name = self._names.get(id(value))
        if name is not None:
            return name, (dim % value.dim(), None)
        view = self.view(value)
        return (self.name(value) or "", None if view is None else view.axis(dim))

    def key(self, value: Tensor | None, dim: int) -> Key | None:
        """The labelled dimension of a parameter that lies along one of a tensor, if any."""
        parts = self.parts(value)
        if parts is not None and parts.lengths is not None and dim % parts.whole.dim() == parts.dim:
            value = parts.lengths
        name, axis = ("", None) if value is None else self._axis(value, dim)
        return (name, axis[0]) if axis and (name, axis[0]) in self.labelled_dims else None

    def label_dim(self, value: Tensor | None, dim: int, role: Role, labels: Tensor) -> Key | None:
        """Say that a dimension of a parameter or buffer, moved or not, carries these labels.

        Where it is met a second time (a shared or tied parameter) the labels are unified. A
        tensor that is neither cannot be cut: the labels are fixed. A buffer is cut along,
        whatever the role it was met in: nobody trains it, so nothing may scale it.
        """
        if value is None:
            return None
        if (parts := self.parts(value)) is not None:
            return self._label_parts(parts, dim, role, labels)
        name, axis = self._axis(value, dim)
        view = self.view(value)
        if axis is None or (role != "affine" and view is not None and not view.zero):
            self.partition.fix(labels, self.computed())
            return None
        key, places = (name, axis[0]), axis[1]
        role = "buffer" if name in self.buffers else role
        size = (self.buffers if name in self.buffers else self.parameters)[name].shape[key[1]]
        if places is not None and not torch.equal(places, torch.arange(size, device="cpu")):
            # A part of it, or some of it repeated.
            own = self.labelled_dims.get(key)
            whole = self.partition.fresh(size) if own is None else own.labels
            self.partition.unify(whole[places], labels, f"shares `{name}` with a fixed width")
            labels = whole
        if key in self.labelled_dims:
            item = self.labelled_dims[key]
            item.labels = self.partition.unify(
                item.labels, labels, f"shares `{name}` with a fixed width"
            ).contiguous()
            # What was met as a factor first, and hands out or reads a width as well, is a weight.
            item.role = role if item.role == "affine" else item.role
        else:
            self.labelled_dims[key] = LabelledDim(name, key[1], role, labels.contiguous())
        return key

    def _label_parts(self, parts: Parts, dim: int, role: Role, labels: Tensor) -> Key | None:
        """The same of a weight that is computed; returns what scales it there."""
        dim %= parts.whole.dim()
        for vector, inside in parts.along(dim, labels):
            self.label_dim(vector, 0, "buffer", inside)
        if parts.moves_zeros(dim):
            self.unpinned.append(labels)
        if parts.lengths is None or dim != parts.dim:
            return self.label_dim(parts.whole, dim, role, labels)
        self.label_dim(parts.whole, dim, "buffer", labels)
        return self.label_dim(parts.lengths, dim, role, labels)

    def computed(self) -> str:
        """Why the weight of the running layer, which is no parameter, is left alone."""
        return computed(self.modules[self.stack[-1] if self.stack else ""])

    def raw(self, value: Any) -> Mark | None:
        """The mark of a tensor; a parameter or buffer used as it is gets one along its last dim.

        Of one that was moved, that is the last dimension of which all is shown: a table of biases
        by head and offset is read at offsets, and its heads stay whole.
        """
        found, view = self.marked(value), self.view(value)
        if found is not None or view is None:
            return found
        dims = [p for p in range(view.parameter.dim()) if view.whole(p)]
        if not dims:
            return None
        labels = self.known(view.parameter, dims[-1])
        if labels is None:
            labels = self.fresh_raw(view.parameter.shape[dims[-1]])
        key = self.label_dim(view.parameter, dims[-1], "affine", labels)
        if key is not None and view.parameter.numel() > labels.numel():
            self.labelled_dims[key].table = True
        scaled = view.zero and self.is_parameter(value)
        sources = self.scaled_by(key) if scaled else self.unscaled(labels)
        places = view.places[dims[-1]]
        mark = Mark(labels[core(places)].expand(places.shape), sources, scaled)
        if id(value) not in self._names:
            self._marks[id(value)] = (weakref.ref(value), mark)
        return mark

    def fresh_raw(self, count: int) -> Tensor:
        """New labels of something of which no width is known yet."""
        labels = self.partition.fresh(count)
        self._raw.append(range(int(labels[0]), self.partition.size))
        return labels

    def is_raw(self, mark: Mark) -> bool:
        """Whether a mark began at a raw parameter or buffer, of which no width is known."""
        first = int(mark.labels[(0,) * mark.labels.dim()]) if mark.labels.numel() else 0
        return any(first in labels for labels in self._raw)

    def attribute(self, module: str, name: str, labels: Tensor, divisor: int = 1) -> None:
        """Say that an integer attribute of a module counts these labels, if it does."""
        holder = self.modules.get(module)
        value = getattr(holder, name, None)
        if value in (labels.numel() // divisor, (labels.numel(),)) and not isinstance(value, bool):
            self.attributes.append((module, name, labels, divisor))

    def passes(self, labels: Tensor) -> None:
        """Say that the running module computes with a width."""
        self.passing.append((self.stack[-1] if self.stack else "", labels))

    # ---- who scales what ---------------------------------------------------------------------

    def scaled_by(self, *keys: Key | None) -> frozenset[int]:
        """Sources: these dimensions of parameters."""
        found = set()
        for key in keys:
            if key is None or self.labelled_dims[key].role == "buffer":
                continue
            if key not in self._source_of:
                self._source_of[key] = len(self.sources)
                self.sources.append((key, self.labelled_dims[key].labels))
            found.add(self._source_of[key])
        return frozenset(found)

    def unscaled(self, labels: Tensor, moved: str = "") -> frozenset[int]:
        """Sources: nothing scales these labels; ``moved``: what is added to zeros, if known."""
        self.sources.append((None, core(labels).reshape(-1)))
        self.moved |= {len(self.sources) - 1: moved} if moved else {}
        return frozenset([len(self.sources) - 1])

    def has_scale(self, sources: frozenset[int]) -> bool:
        """Whether a parameter is among the sources."""
        return any(self.sources[i][0] is not None for i in sources)

    def consume(
        self, found: Mark | None, labels: Tensor, column: Key | None, normed: bool = False
    ) -> None:
        """Channels are summed over here."""
        if found is None:
            return
        if column is None and not found.zero:  # no weight that could leave them out of the sum
            self.partition.fix(labels, "summed over where a channel of zeros is not zero any more")
        self.consumptions.append(Consumption(labels, found.sources, column, normed))
        if not found.zero:
            self.unpinned.append(labels)

    def operator(self, layer: str, constant: int, *labels: Tensor) -> None:
        """Count an operator."""
        if self.counting and constant:
            self.operators.append((layer, int(constant), labels))

    def produce(self, out: Tensor, dim: int, labels: Tensor, sources: frozenset[int]) -> None:
        """Mark the output of a layer that hands out a width along ``dim``."""
        if labels.numel() == 1:
            self.partition.fix(labels, "the only output of its layer")
        self.put(out, along(labels, dim % out.dim(), out.shape), sources)
