"""What a model costs at given widths, and the budget it has to meet.

Structures of one group cut the same dimensions, so every cost is a function of *how many*
structures of each group stay: a vector ``kept`` of shape ``(G,)``. Costs are not additive over
structures (a layer's multiply-accumulates are a product of its widths), which is why selection
asks this model again and again instead of summing savings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from numbers import Real

import torch
from torch import Tensor

from decayprune.structures.branches import branch_groups
from decayprune.structures.structure_map import StructureMap


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds on what *remains*, each as a fraction of the dense model, in (0, 1].

    Several bounds hold together; ``None`` leaves a cost free.

    Attributes:
        macs: Multiply-accumulates of one forward pass.
        params: Number of parameters.
        structures: Number of prunable structures.
        latency: Time of a forward pass on the example inputs, estimated from copies that are cut
            and timed when the pruner is built, on this machine and in its state of then.
        depth: Number of residual branches (an attention, an FFN, a block): they leave whole, and
            only if this is given; the other bounds are then met by what is left.

    Raises:
        ValueError: A bound lies outside (0, 1], or none is given.
    """

    macs: float | None = None
    params: float | None = None
    structures: float | None = None
    latency: float | None = None
    depth: float | None = None

    def __post_init__(self) -> None:
        if not self.bounds:
            raise ValueError("Budget() needs at least one bound, for example Budget(macs=0.5).")
        for name, bound in self.bounds.items():
            if not isinstance(bound, Real) or not 0 < bound <= 1:
                raise ValueError(
                    f"Budget({name}=...) is the fraction that remains, a number above 0 and up "
                    f"to 1; found {bound!r}. To remove 30 %, write {name}=0.7."
                )

    def __str__(self) -> str:
        return ", ".join(f"{name}={bound:g}" for name, bound in self.bounds.items())

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: bound for name, bound in values.items() if bound is not None}

    def after(self, share: float) -> Budget:
        """The bounds once a share of the way is gone: ``1 - (1 - target) * share``.

        Args:
            share: In [0, 1]; 1 gives the budget itself.
        """
        if share >= 1:
            return self
        return Budget(**{n: 1 - (1 - bound) * share for n, bound in self.bounds.items()})


class _Products:
    """``constant + sum_t factor_t * width[a_t] * width[b_t] * ...`` as one tensor expression."""

    def __init__(self, terms: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        arity = max((len(vectors) for _, vectors in terms), default=0)
        self._factor = torch.tensor(
            [factor for factor, _ in terms], dtype=torch.int64, device="cpu"
        )
        # Index 0 is a width of 1, which pads products of fewer factors.
        padded = [[v + 1 for v in vectors] + [0] * (arity - len(vectors)) for _, vectors in terms]
        self._index = torch.tensor(padded, dtype=torch.int64, device="cpu").view(len(terms), arity)

    def __call__(self, widths: Tensor) -> int:
        padded = torch.cat([widths.new_ones(1), widths])
        return int((self._factor * padded[self._index].prod(1)).sum())


class CostModel:
    """Costs of a model as functions of the structures kept in each group.

    Args:
        structures: What can be cut, and what is computed.
        shapes: Shape of every parameter of the model, by name.
    """

    def __init__(
        self,
        structures: StructureMap,
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        self._latency: Callable[[Tensor], float] | None = None
        self.sizes = torch.tensor(
            [group.size for group in structures.groups], dtype=torch.int64, device="cpu"
        )
        self._group_of, self._branches = structures.group_of, branch_groups(structures)
        self._widths: list[Tensor] = []
        self._seen: dict[bytes, int] = {}

        macs = [
            (operator.constant, tuple(self._vector(labels) for labels in operator.labels))
            for operator in structures.operators
        ]
        values = [
            (operator.constant // prod(shape[2:]), (self._vector(operator.labels[0]),))
            for operator in structures.operators
            if (shape := shapes.get(f"{operator.layer}.weight")) and operator.labels
        ]
        cut: dict[str, list[tuple[int, Tensor]]] = {}
        for item in structures.slices:
            if item.name in shapes and item.role != "gate":  # no buffer
                cut.setdefault(item.name, []).append((item.dim, item.structure))
        params = []
        for name, shape in shapes.items():
            dims = dict(cut.get(name, []))
            rest = 1
            for dim, width in enumerate(shape):
                rest *= 1 if dim in dims else width
            # Every factor is a width, or a branch that stays or not.
            around = [
                torch.tensor([b.structure], device="cpu")
                for b in structures.branches
                if b.holds(name)
            ]
            params.append((rest, tuple(map(self._vector, (*dims.values(), *around)))))

        self._fixed = (
            torch.stack(self._widths)[:, 0] if self._widths else torch.zeros(0, device="cpu")
        )
        self._per_group = (
            torch.stack(self._widths)[:, 1:] if self._widths else torch.zeros(0, device="cpu")
        )
        self._macs, self._params = _Products(macs), _Products(params)
        self._values = _Products(values)
        self.batch = structures.batch

    def timed_by(self, latency: Callable[[Tensor], float]) -> CostModel:
        """The same costs, and a time of a forward pass.

        Args:
            latency: Gives it for a vector ``kept``.
        """
        timed = copy.copy(self)
        timed._latency = latency
        return timed

    def _vector(self, labels: Tensor) -> int:
        """Register a label vector: how many of its indices are fixed, and belong to each group."""
        key = labels.numpy().tobytes()
        if key not in self._seen:
            kept = labels[labels >= 0]
            per_group = torch.bincount(self._group_of[kept], minlength=self.sizes.numel())
            # Structures of a group are alike: each has the same number of indices here.
            per_structure = per_group // self.sizes
            fixed = torch.tensor([labels.numel() - kept.numel()], device="cpu")
            self._seen[key] = len(self._widths)
            self._widths.append(torch.cat([fixed, per_structure]))
        return self._seen[key]

    def _kept_widths(self, kept: Tensor) -> Tensor:
        return self._fixed + (self._per_group * kept).sum(1) if self._widths else kept[:0]

    def macs(self, kept: Tensor) -> int:
        """Multiply-accumulates of one forward pass of one example.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        return self._macs(self._kept_widths(kept)) // self.batch

    def values(self, kept: Tensor) -> int:
        """Activations that layers with weights hand on in one forward pass of one example.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        return self._values(self._kept_widths(kept)) // self.batch

    def params(self, kept: Tensor) -> int:
        """Number of parameters.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        return self._params(self._kept_widths(kept))

    def latency(self, kept: Tensor) -> float:
        """Estimated time of one forward pass, in the unit it was measured in.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.

        Raises:
            ValueError: Nobody measured it.
        """
        if self._latency is None:
            raise ValueError(
                "A latency budget needs measurements, which only dp.DecayPruner makes; bound macs, "
                "params or structures here."
            )
        return self._latency(kept)

    def fractions(self, kept: Tensor, names: Sequence[str]) -> dict[str, float]:
        """Costs at some widths as fractions of the dense model's.

        Args:
            kept: Structures that stay in each group, shape ``(G,)``.
            names: Which costs: fields of :class:`Budget`.
        """
        value: dict[str, Callable[[Tensor], float]] = {
            "macs": self.macs,
            "params": self.params,
            "structures": lambda kept: int(kept.sum()),
            "latency": self.latency,
            "depth": lambda kept: int(kept[self._branches].sum()),
        }
        return {name: value[name](kept) / (value[name](self.sizes) or 1) for name in names}

    def meets(self, budget: Budget, kept: Tensor) -> bool:
        """Whether every bound of the budget holds at some widths.

        Args:
            budget: The bounds.
            kept: Structures that stay in each group, shape ``(G,)``.
        """
        bounds = budget.bounds
        reached = self.fractions(kept, list(bounds))
        return all(reached[name] <= bound for name, bound in bounds.items())

    def keep_counts(self, committed: Tensor) -> Tensor:
        """Structures left in each group, shape ``(G,)``, when some are committed to leave.

        Args:
            committed: Bool, shape ``(S,)``.
        """
        gone = torch.bincount(self._group_of[committed], minlength=self.sizes.numel())
        return self.sizes - gone
