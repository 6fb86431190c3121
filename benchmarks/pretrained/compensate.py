"""Ridge compensation around a pruner: calibrate once, hand over when structures are picked.

A structure's *consumer* is the linear layer that reads it: the output projection of attention reads
heads, the second layer of an FFN reads its channels. :func:`calibrate` gathers moments of what the
consumers read; :func:`variance_importance` ranks structures by them; :class:`Compensated` changes
the consumers' columns and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from ridge import Moments, StandIn, importance, stand_in
from torch import Tensor, nn

import decayprune as dp
from decayprune.method.lifecycle import DECAYING
from decayprune.structures.structure_map import StructureMap

if TYPE_CHECKING:
    from loop import Batch

Scores = Callable[[StructureMap, Mapping[str, Tensor]], Tensor]


class Consumer(NamedTuple):
    """A linear layer and the structure that each of its inputs belongs to, ``(inputs,)``."""

    name: str
    layer: nn.Linear
    structure: Tensor


class _Replacement(NamedTuple):
    """What a consumer does when its picked inputs leave."""

    layer: nn.Linear
    staying: Tensor
    structures: Tensor  # of the leaving columns
    columns: Tensor  # as they were when picked
    stand_in: StandIn


def consumers(model: nn.Module, structures: StructureMap) -> list[Consumer]:
    """Linear layers whose columns leave with structures."""
    found = []
    for item in structures.slices:
        name, _, kind = item.name.rpartition(".")
        layer = model.get_submodule(name)
        if item.role == "column" and kind == "weight" and isinstance(layer, nn.Linear):
            found.append(Consumer(name, layer, item.structure))
    return found


@torch.no_grad()
def calibrate(
    model: nn.Module, readers: Iterable[Consumer], batches: Iterable[Batch]
) -> dict[str, Moments]:
    """Moments of what the consumers read, by name; padding does not count, labels are not read."""
    moments = {c.name: Moments(c.layer.in_features) for c in readers}
    real = torch.zeros(0, dtype=torch.bool)  # which tokens of the batch at hand are

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            moments[name].add(inputs[0][real])

        return hook

    hooks = [c.layer.register_forward_pre_hook(watch(c.name)) for c in readers]
    training = model.training
    model.eval()
    try:
        for ids, mask, _ in batches:
            real = mask.bool()
            model(ids, mask)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return moments


def variance_importance(moments: Mapping[str, Moments], readers: Iterable[Consumer]) -> Scores:
    """Structures ranked by how much their consumers' outputs vary with them.

    Raises:
        ValueError: A structure has no consumer that was calibrated.
    """
    readers = list(readers)

    def scores(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(structures.num_structures, dtype=torch.float64)
        seen = torch.zeros(structures.num_structures, dtype=torch.bool)
        for name, layer, structure in readers:
            mine = structure >= 0
            value = importance(moments[name].variance, layer.weight)
            total.index_add_(0, structure[mine], value[mine])
            seen[structure[mine]] = True
        if not bool(seen.all()):
            layer_name = structures.layer_of(int((~seen).nonzero()[0]))
            raise ValueError(f"No linear layer that was calibrated reads {layer_name}.")
        return total.sqrt().float()

    return scores


class Compensated:
    """A pruner whose consumers take over what they lose.

    Args:
        pruner: Picks structures in one round.
        readers: Its consumers.
        moments: What they read, by name.
        hand_over: Take over along the decay: of a structure at the share ``phi`` of its length,
            ``1 - phi``, which keeps the function where the consumer's input shrinks by ``phi``
            too: not quite under GELU, where rows shrink before it. Otherwise all of it at the
            moment of the pick, and the structure counts twice until it is gone.
        ridge: See :func:`ridge.stand_in`.
    """

    def __init__(
        self,
        pruner: dp.DecayPruner,
        readers: list[Consumer],
        moments: Mapping[str, Moments],
        *,
        hand_over: bool,
        ridge: float = 1e-3,
    ) -> None:
        self.pruner, self._readers, self._moments = pruner, readers, moments
        self._hand_over, self._ridge = hand_over, ridge
        self._replacements: list[_Replacement] = []
        self._given = torch.zeros(pruner.structures.num_structures)

    @property
    def finished(self) -> bool:
        """As the pruner's."""
        return self.pruner.finished

    @property
    def events(self) -> list[dp.Event]:
        """As the pruner's."""
        return self.pruner.events

    def observe(self) -> None:
        """As the pruner's."""
        self.pruner.observe()

    def compact(self) -> dp.CompactionReport:
        """As the pruner's."""
        return self.pruner.compact()

    @torch.no_grad()
    def step(self) -> None:
        """The pruner's step, and what it means for the consumers."""
        if self._replacements:
            self.pruner.step()
        else:  # an abrupt pick zeroes its columns at once, so they are noted before
            before = {c.name: c.layer.weight.detach().clone() for c in self._readers}
            self.pruner.step()
            self._fit(before)
        self._settle()

    def _fit(self, before: Mapping[str, Tensor]) -> None:
        picked = self.pruner.lifecycle.committed
        for name, layer, structure in self._readers:
            leaves = (structure >= 0) & picked[structure.clamp(min=0)]
            if not bool(leaves.any()):
                continue
            leaving, staying = leaves.nonzero().flatten(), (~leaves).nonzero().flatten()
            fitted = stand_in(self._moments[name], staying, leaving, self._ridge)
            columns = before[name][:, leaving]
            self._replacements.append(
                _Replacement(layer, staying, structure[leaving], columns, fitted)
            )

    def _settle(self) -> None:
        """Give the consumers what they are due by now; a released structure takes it back."""
        state = self.pruner.lifecycle
        due = state.committed.float()
        if self._hand_over:
            left = state.length / state.start_length.clamp(min=torch.finfo(torch.float32).tiny)
            due = torch.where(state.phase == DECAYING, 1 - left.float().clamp(max=1), due)
        change = due - self._given
        for layer, staying, structures, columns, fitted in self._replacements:
            share = change[structures]
            if bool((share != 0).any()):
                weight, bias = fitted.folded(columns, share)
                layer.weight[:, staying] += weight.to(layer.weight.dtype)
                layer.bias += bias.to(layer.bias.dtype)
        self._given = due
