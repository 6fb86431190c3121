"""Running a model on some batches to learn what its layers read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from decayprune.compensation.consumers import Consumer, by_structure, consumers
from decayprune.compensation.moments import Moments, RunningMoments, pooled
from decayprune.compensation.watched import OnRead, watched
from decayprune.structures.example import ExampleInputs, arguments, quiet, refusal
from decayprune.structures.ranks import gathered, several
from decayprune.structures.structure_map import StructureMap
from decayprune.structures.sums import labelled, sum_products
from decayprune.structures.tracing.call import in_words


class Calibration:
    """What the layers that read structures have read on calibration data.

    Args:
        readers: Those layers.
        moments: Of each of them, by its name; those that were never called are missing.

    Attributes:
        moments: As above.
        readers: Those layers that were called.
    """

    def __init__(self, readers: Iterable[Consumer], moments: Mapping[str, Moments]) -> None:
        self._known = tuple(readers)
        self.take(moments)

    def take(self, moments: Mapping[str, Moments]) -> None:
        """Have other moments from now on.

        Args:
            moments: As above.
        """
        self.moments = dict(moments)
        self.readers = tuple(reader for reader in self._known if reader.name in self.moments)

    def importance(self, structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        """How much the outputs of its consumers vary with a structure.

        The root of the sum, over consumers and input channels, of the channel's variance times the
        squared norm of its column: the error in the consumers' outputs if the structure is replaced
        by its mean. A group that nobody read on the calibration data is ranked by the norms of its
        weights instead; scores are compared within groups, or relative to their mean.

        Source: variance-based pruning; over several consumers and structures, ours.

        Returns:
            Shape ``(S,)``.
        """
        total = by_structure(
            (
                (reader, self.moments[reader.name].variance * _of_columns(reader, parameters))
                for reader in self.readers
            ),
            structures.num_structures,
        )
        return self.or_norms(total.sqrt(), structures, parameters)

    def or_norms(
        self, scores: Tensor, structures: StructureMap, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        """Scores, and the norms of the weights in groups that nobody read.

        Args:
            scores: Of what was read, shape ``(S,)``.
            structures: Of the model.
            parameters: By name.
        """
        size, scores = len(scores), scores.clone()
        seen = torch.zeros(size, dtype=torch.bool, device="cpu")
        for reader in self.readers:
            seen[reader.structure[reader.structure >= 0]] = True
        if not bool(seen.all()):
            norms = sum_products(labelled(structures), size, parameters).cpu().double().sqrt()
            for group in structures.groups:
                part = slice(group.start, group.stop)
                if not bool(seen[part].all()):
                    scores[part] = norms[part]
        return scores.float()

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors, by the layer's name."""
        return {name: vars(moments) for name, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ValueError: It is of other layers.
        """
        found = {name: _widths(part["mean"], part["covariance"]) for name, part in state.items()}
        expected = {reader.name: (len(reader.structure),) * 3 for reader in self._known}
        others = bool(found and self.moments) and found.keys() != self.moments.keys()
        if others or not found.items() <= expected.items():
            raise ValueError(
                "This state was calibrated on other layers. Build the pruner with the calibration "
                "data that it was saved with."
            )
        self.take({name: Moments(**part) for name, part in state.items()})


def _widths(mean: Tensor, covariance: Tensor) -> tuple[int, ...]:
    return (*mean.shape, *covariance.shape)


def _of_columns(reader: Consumer, parameters: Mapping[str, Tensor]) -> Tensor:
    """Squared norm of the column of each input channel, float64, on the CPU."""
    held = parameters.get(f"{reader.name}.weight")
    weight = reader.weight if held is None else reader.turned(held.detach())
    return weight.double().cpu().movedim(1, 0).flatten(1).square().sum(1)


def calibrate(
    model: nn.Module, structures: StructureMap, batches: Iterable[ExampleInputs]
) -> Calibration:
    """Learn what the layers of a model read, in evaluation mode and without gradients.

    Where a batch is a dictionary with an ``attention_mask``, padding does not count. In a
    data-parallel run every rank brings batches of its own, and all learn the same.

    Args:
        model: Nothing of it changes.
        structures: Of the model.
        batches: Each as ``example_inputs`` are. Labels are not needed.

    Raises:
        ValueError: There is no batch, the model does not run on one, or a layer has read something
            that is not finite.
    """
    readers = consumers(model, structures)
    running = {reader.name: RunningMoments(len(reader.structure)) for reader in readers}
    number, device = 0, next(model.parameters()).device
    with quiet(model):
        for batch in batches:
            args, kwargs = arguments(on_device(device, batch))
            adding = _adding(running, kwargs.get("attention_mask"))
            with watched(model, readers, adding):
                _run(model, args, kwargs)
            number += 1
    if not number:
        raise ValueError(
            "calibrate has no batch. Pass your training loader, or a list of batches, each as the "
            "model takes it."
        )
    moments = {name: part.result() for name, part in running.items() if part.count}
    for name, part in moments.items():
        if not bool(part.covariance.isfinite().all()):
            raise ValueError(
                f"`{name}` has read values that are not finite on a batch of calibrate. Look at "
                "the data, and at the weights before it."
            )
    return Calibration(readers, _of_all_ranks(moments))


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        model(*args, **kwargs)
    except torch.OutOfMemoryError:  # which says nothing about the batch
        raise
    except Exception as error:
        raise ValueError(
            f"The model does not run on a batch of calibrate. Passed: {in_words((args, kwargs))}. "
            f"It raised {refusal(error)}. Pass your training loader, or a list of batches of the "
            "form of example_inputs."
        ) from error


def on_device(device: torch.device, batch: ExampleInputs) -> ExampleInputs:
    """A batch with its tensors on a device.

    Args:
        device: Where.
        batch: A tensor, or tuples and dictionaries of them.
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: on_device(device, part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(on_device(device, part) for part in batch)
    return batch


def _adding(running: Mapping[str, RunningMoments], mask: Tensor | None) -> OnRead:
    """Adds up what is read, but for padding."""

    def add(reader: Consumer, read: Tensor) -> None:
        if mask is not None and read.shape[:-1] == mask.shape:
            read = read[mask.bool()]
        running[reader.name].add(reader.rows(read))

    return add


def _of_all_ranks(moments: dict[str, Moments]) -> dict[str, Moments]:
    """The same on every rank, whatever batches it had."""
    if not several():
        return moments
    everybody = gathered(moments)
    names = [name for name in moments if all(name in part for part in everybody)]
    return {name: pooled([part[name] for part in everybody]) for name in names}
