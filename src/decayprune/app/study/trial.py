"""One run of a comparison: every choice in one flat record that names its own file.

Two trials that differ in ``variant`` alone are a pair: the same dense weights, the same batches,
the same number of optimizer steps, and the same MACs at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from decayprune.app.run.methods import HOSTS, VARIANTS

Optimizer = Literal["sgd", "adamw"]

CONTROLS = ("rounds", "random_release", "random_selection", "small", "longer")
"""What could embarrass us.

``rounds``: abrupt cuts in ten rounds; ``random_release``: random ones
are released at the moments of the tournament; ``random_selection``: what decays is drawn;
``small``: a network of the final shape trained from scratch for all steps, dense ones included;
``longer``: the dense network trained on.
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a phase trains.

    Attributes:
        epochs: How long.
        lr: Peak learning rate.
        momentum: Of SGD.
        weight_decay: Of the optimizer.
        milestones: Shares of the phase at which the rate falls to a tenth; none: half a cosine.
        restarts: Shares of the phase at which the rate is ``lr`` again: falls count from there,
            and a cosine reaches zero there.
        optimizer: ``"sgd"`` or ``"adamw"``.
        warm: Steps over which the rate rises first, of a network that has learnt nothing yet.

    Raises:
        ValueError: The optimizer is unknown.
    """

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = ()
    restarts: tuple[float, ...] = ()
    optimizer: Optimizer = "sgd"
    warm: int = 0

    def __post_init__(self) -> None:
        _check_known("Training.optimizer", self.optimizer, get_args(Optimizer))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run does.

    Attributes:
        task: Name of a data set.
        model: Name of a model, or ``pkg.mod:factory``.
        host: One of :data:`~.methods.HOSTS`.
        variant: One of :data:`~.methods.VARIANTS` or :data:`CONTROLS`.
        budget: MACs that remain, at most; the variants and controls of a host aim at what the
            host alone ended with.
        seed: What everything random follows from.
        dense: Training before, once per seed and shared; None: ``pretrained`` or from scratch.
        training: Training in which structures leave, and after.
        batch_size: Images per step.
        pretrained: File with a dense state dict in the data folder, instead of ``dense``.
        decay_steps: ``N`` of the smooth variants; None: a tenth of the steps.
        start: Share of the training before anything is pruned.
        options: Arguments of the host, by name.
        bf16: Forward passes in bfloat16 autocast, weights with channels last.
        steps: Most optimizer steps of a phase; None: whole epochs.
        limit: Most images of a split; None: all.

    Raises:
        ValueError: A name is unknown.
    """

    task: str
    model: str
    host: str = "default"
    variant: str = "sp_sr"
    budget: float = 0.25
    seed: int = 0
    dense: Training | None = None
    training: Training
    batch_size: int = 128
    pretrained: str | None = None
    decay_steps: int | None = None
    start: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    bf16: bool = True
    steps: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("host", HOSTS), ("variant", VARIANTS + CONTROLS)):
            _check_known(f"Trial.{name}", getattr(self, name), known)

    @property
    def name(self) -> str:
        """Its file's name: readable, and different for every choice."""
        words = [self.task, self.model.rpartition(":")[2], self.host, f"{self.budget:g}"]
        words += [self.variant, f"s{self.seed}", _digest(self.to_dict())]
        return "-".join(words)

    @property
    def dense_name(self) -> str:
        """Name of the dense checkpoint it starts from: the same for every trial of its seed."""
        chosen = {
            name: value
            for name, value in self.to_dict().items()
            if name in ("task", "model", "seed", "dense", "batch_size", "bf16", "steps", "limit")
        }
        words = [self.task, self.model.rpartition(":")[2], f"s{self.seed}", _digest(chosen)]
        return "-".join(words)

    def to_dict(self) -> dict[str, Any]:
        """As plain values.

        What was added after the first runs is left out where it is not used, so that their names
        remain.
        """
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for how in (plain["dense"], plain["training"]):
            for name, unused in (("optimizer", "sgd"), ("restarts", []), ("warm", 0)):
                if how is not None and how[name] == unused:
                    del how[name]
        return plain

    def with_(self, **changes: Any) -> Trial:
        """The same with some changes.

        Args:
            changes: By the names of the attributes.
        """
        return replace(self, **changes)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Trial:
        """A trial as it was kept.

        Args:
            found: What :meth:`to_dict` gave.

        Raises:
            ValueError: A field is unknown.
        """
        unknown = set(found) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(
                f"A trial has no field {', '.join(sorted(unknown))}; it was written by another "
                "version of decayprune."
            )
        values = dict(found)
        for name in ("dense", "training"):
            if values.get(name) is not None:
                inner = dict(values[name])
                shares = {n: tuple(inner[n]) for n in ("milestones", "restarts") if n in inner}
                values[name] = Training(**inner | shares)
        return cls(**values)


def _check_known(name: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}; found {found!r}.")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
