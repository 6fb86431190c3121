"""Training without pruning: the dense network that all trials of a seed share, and the controls.

The dense network is trained by the first trial that asks for it and kept in ``dense/``; a digest
says that two trials began with the same weights.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from decayprune.app.run import models, own
from decayprune.app.run.batches import seed_all
from decayprune.app.run.data import Data
from decayprune.app.run.loop import Step, cosine, train_steps
from decayprune.app.run.methods import Pruning
from decayprune.app.study.trial import Training, Trial
from decayprune.checkpoint.atomic import write_atomically

_WARM = 100
"""Steps over which a network that has learnt nothing yet raises its learning rate."""


def fresh(trial: Trial, data: Data) -> nn.Module:
    """The network before its first step: the same for every trial of the seed.

    Args:
        trial: Names it.
        data: Says how large its inputs and outputs are.
    """
    seed_all(trial.seed)
    if ":" in trial.model:
        model = own.model(trial.model)
    else:
        model = models.build(trial.model, data.in_channels, data.num_classes, data.image_size)
    return model.to(memory_format=torch.channels_last) if trial.bf16 else model


def dense(
    trial: Trial, data: Data, folder: Path, data_dir: Path, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """The network that pruning starts from, trained if nobody did, and a digest of it.

    Args:
        trial: Says how it is trained, or where its weights are.
        data: To train it on.
        folder: Of the study: holds ``dense/``.
        data_dir: Where files of pretrained weights are.
        say: Told what goes on.

    Raises:
        FileNotFoundError: Pretrained weights are not there.
    """
    model = fresh(trial, data)
    if trial.pretrained is not None:
        file = data_dir / trial.pretrained
        if not file.is_file():
            raise FileNotFoundError(
                f"{trial.task} with {trial.model} starts from trained weights: expected a "
                f"state dict saved with torch.save in {file}; there is no such file."
            )
        model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    elif trial.dense is not None:
        file = folder / "dense" / f"{trial.dense_name}.pt"
        if not file.is_file():
            steps = steps_of(trial, trial.dense, data)
            say(f"dense network of seed {trial.seed}: {steps} steps")
            for _ in train(model, trial, data, replace(trial.dense, warm=_WARM), steps):
                pass
            file.parent.mkdir(parents=True, exist_ok=True)
            state = model.state_dict()
            write_atomically({file: lambda path: torch.save(state, path)})
        model.load_state_dict(torch.load(file, weights_only=True))
    return model, digest_of(model)


def from_scratch(model: nn.Module, trial: Trial, data: Data, steps: int) -> Iterator[Step]:
    """Train a fresh network for the steps of the dense one and of what follows.

    Args:
        model: Trained in place.
        trial: Says how a dense network is trained.
        data: To train on.
        steps: Those that follow the dense training.
    """
    how = trial.dense or trial.training
    total = steps + (steps_of(trial, trial.dense, data) if trial.dense else 0)
    return train(model, trial, data, replace(how, warm=_WARM), total)


def optimizer_of(how: Training, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a phase.

    Args:
        how: Says which, and its numbers.
        model: What it trains.
    """
    if how.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), how.lr, weight_decay=how.weight_decay)
    return torch.optim.SGD(
        model.parameters(), how.lr, momentum=how.momentum, weight_decay=how.weight_decay
    )


def train(
    model: nn.Module,
    trial: Trial,
    data: Data,
    how: Training,
    steps: int,
    *,
    pruning: Pruning | None = None,
) -> Iterator[Step]:
    """Train, one yield per step.

    Args:
        model: Trained in place.
        trial: Seed and precision.
        data: To train on.
        how: Rates of the phase.
        steps: How long.
        pruning: What prunes meanwhile, with the optimizer that it brings.
    """
    return train_steps(
        model,
        optimizer_of(how, model) if pruning is None else pruning.optimizer,
        data.train,
        start=0,
        stop=steps,
        lr=rate(how, steps),
        seed=trial.seed,
        bf16=trial.bf16,
        pruner=pruning,
    )


def steps_of(trial: Trial, how: Training, data: Data) -> int:
    """Optimizer steps of a phase."""
    steps = how.epochs * len(data.train)
    return steps if trial.steps is None else min(steps, trial.steps)


def rate(how: Training, steps: int) -> Callable[[int], float]:
    """Learning rate by step: half a cosine, or falls to a tenth at the milestones; warmed up.

    Args:
        how: Says which, and where it begins anew.
        steps: Of the whole phase.
    """
    begins = [0, *(int(share * steps) for share in how.restarts), steps]
    falls = [int(share * steps) for share in how.milestones]

    def falling(step: int) -> float:
        part = max(0, min(bisect_right(begins, step), len(begins) - 1) - 1)
        if not falls:
            return cosine(step, begins[part], begins[part + 1], how.lr)
        return how.lr * 0.1 ** sum(begins[part] < fall <= step for fall in falls)

    return lambda step: falling(step) * min(1.0, (step + 1) / max(1, how.warm))


def digest_of(model: nn.Module) -> str:
    """A digest of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
