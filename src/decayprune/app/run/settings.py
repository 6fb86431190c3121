"""Every choice of a run, in one flat record that is kept in its folder and read back on resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.selection.schedule import Schedule

DATA_DIR = Path.home() / ".cache" / "decayprune"
"""Where data sets are looked for and downloaded to unless the user says otherwise."""


OLD_WORDS = {"torch-pruning": "depgraph", "sp+sr": "sp_sr"}
"""Spellings of version 0.1, which scripts and folders of runs still have."""

_HOSTS_WITH_ROUNDS = ("default", "hesso", "depgraph", "depgraph-sl")


class _Defaults(NamedTuple):
    model: str | None
    epochs: int
    prune_epochs: int
    finetune_epochs: int
    batch_size: int | None
    bf16: bool  # where the processor has units for it


# Few epochs where a laptop should finish over a cup of coffee; the usual 200 and 90 in all on
# CIFAR and ImageNet, which want a GPU.
_BY_DATASET = {
    "digits": _Defaults("resnet8", 15, 15, 10, 64, False),
    "fashion-mnist": _Defaults("resnet20", 3, 2, 2, 128, True),
    "cifar10": _Defaults("resnet56", 100, 60, 40, 128, True),
    "cifar100": _Defaults("vgg19", 100, 60, 40, 128, True),
    "imagenet": _Defaults("torchvision.models:resnet50", 40, 30, 20, 256, True),
}
_OWN_DATA = _Defaults(None, 10, 6, 4, None, False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``decayprune prune`` was asked to do; None means: what suits the data set.

    Attributes:
        dataset: Name of a data set; ignored when ``data`` is given.
        model: Name of a model, or ``pkg.mod:factory``.
        data: ``pkg.mod:loaders`` of the user, or None.
        host: The pruning method that selects, one of :data:`~.methods.HOSTS`; spelt as in 0.1,
            it is understood.
        variant: One of :data:`~.methods.VARIANTS`; likewise.
        budget: Multiply-accumulates that remain, as a fraction.
        params_budget: Parameters that remain, as a fraction; None leaves them free.
        epochs: Dense training before anything decays; 0 when the model is trained already.
        prune_epochs: Training during which structures decay.
        finetune_epochs: Training of the compact model.
        batch_size: Images per step; the user's own loaders decide for themselves.
        lr: Peak learning rate of dense training; half of it from then on.
        weight_decay: Of SGD.
        decay_steps: ``N``, steps of one decay.
        rounds: Instalments in which the budget is reached.
        importance: Criterion by which the default host ranks structures.
        seed: What everything random follows from.
        data_dir: Where files of data sets are.
        threads: Threads of torch.
        device: Where to compute.
        bf16: Forward passes in bfloat16 autocast. None: where the processor has units for it
            (AMX, or a GPU that supports it), except on digits and the user's own data.
    """

    dataset: str = "digits"
    model: str | None = None
    data: str | None = None
    host: str = "default"
    variant: str = "sp_sr"
    budget: float = 0.5
    params_budget: float | None = None
    epochs: int | None = None
    prune_epochs: int | None = None
    finetune_epochs: int | None = None
    batch_size: int | None = None
    lr: float = 0.1
    weight_decay: float = 5e-4
    decay_steps: int | None = None
    rounds: int | None = None
    importance: str = "magnitude"
    seed: int = 0
    data_dir: str = str(DATA_DIR)
    threads: int | None = None
    device: str | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        for name in ("host", "variant"):
            word = getattr(self, name)
            object.__setattr__(self, name, OLD_WORDS.get(word, word))

    def resolved(self) -> Settings:
        """The same with every None that has a default filled in, and checked.

        Raises:
            ValueError: A value makes no sense.
        """
        if self.data and not self.model:
            raise ValueError("--data needs a model that fits it: give --model as well.")
        if self.data and self.batch_size is not None:
            raise ValueError("--batch-size has no effect on the loaders of --data: leave it out.")
        if not self.data and self.dataset not in _BY_DATASET:
            raise ValueError(
                f"--dataset expects one of {', '.join(_BY_DATASET)}; found {self.dataset!r}. "
                "For your own data give --data pkg.mod:loaders."
            )
        defaults = _OWN_DATA if self.data else _BY_DATASET[self.dataset]
        filled = {
            name: value for name, value in defaults._asdict().items() if getattr(self, name) is None
        }
        threads = torch.get_num_threads() if self.threads is None else self.threads
        device = _device(self.device)
        if filled.get("bf16"):
            filled["bf16"] = _has_bf16_units(device)
        settings = replace(self, **filled, threads=threads, device=device)
        settings._check()
        return settings

    def _check(self) -> None:
        lowest = {"epochs": 0, "prune_epochs": 1, "finetune_epochs": 0, "batch_size": 1, "seed": 0}
        lowest |= {"threads": 1, "decay_steps": 1, "rounds": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least {low}; found {value}.")
        self._check_host()
        if not self.lr > 0:
            raise ValueError(f"--lr must be above 0; found {self.lr}.")
        for option, share in (("--budget", self.budget), ("--params-budget", self.params_budget)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(
                    f"{option} is the fraction that remains, a number above 0 and up to 1; found "
                    f"{share}. To remove 30 %, write {option} 0.7."
                )

    def _check_host(self) -> None:
        for name, known in (("host", HOSTS), ("variant", VARIANTS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"--{name} expects one of {', '.join(known)}; found {getattr(self, name)!r}."
                )
        if self.host != "default" and self.importance != "magnitude":
            raise ValueError(
                f"--importance has no effect with --host {self.host}, which ranks by a criterion "
                "of its own: leave one of them out."
            )
        if self.rounds is not None and self.host not in _HOSTS_WITH_ROUNDS:
            raise ValueError(
                f"--rounds has no effect with --host {self.host}, which selects in steps of its "
                "own: leave one of them out."
            )
        if self.decay_steps is not None and self.variant == "alone":
            raise ValueError(
                "--decay-steps has no effect with --variant alone, the host as published: leave "
                "one of them out."
            )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Settings:
        """Settings as they were kept.

        Raises:
            ValueError: A field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if names != set(found):
            odd = ", ".join(sorted(names ^ set(found)))
            raise ValueError(
                f"The settings of the run should hold exactly the fields of this version of "
                f"decayprune; these differ: {odd}. Resume with the version that began the run."
            )
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The settings as flat plain scalars."""
        return asdict(self)

    def schedule(self, epoch_steps: int) -> Schedule:
        """When structures are selected, and how long they decay: the same for every host.

        The variant *alone* selects at the same steps as the others, and cuts at once.

        Args:
            epoch_steps: Optimizer steps in one epoch.

        Raises:
            ValueError: A decay does not fit into the steps there are.
        """
        steps = epoch_steps * (self.prune_epochs or 1)
        usual = Schedule.for_run(steps + epoch_steps * (self.finetune_epochs or 0))
        decay = min(usual.decay_steps, max(1, steps // 2))
        if self.decay_steps is not None:
            decay = self.decay_steps
        if decay >= max(2, steps):
            raise ValueError(
                f"--decay-steps must be below the {steps} steps of pruning ({self.prune_epochs} "
                f"epochs of {epoch_steps}); found {decay}. Lower it or raise --prune-epochs."
            )
        rounds = self.rounds or 1
        at_once = self.host == "default" and rounds == 1
        stop = min(decay, steps - decay) if at_once else steps - decay
        smooth = self.variant != "alone"
        return Schedule(stop=stop, rounds=rounds, decay_steps=decay if smooth else 1)


def _device(name: str | None) -> str:
    """Where to compute: as asked for, or the best there is."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device expects cpu, cuda or cuda:1 and the like; found {name!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda expects a GPU that this torch can use; found none. Leave --device out "
            "to compute on the processor."
        )
    return name


def _has_bf16_units(device: str) -> bool:
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())
