"""One model of the field zoo: built, decayed, cut, compared, trained on, saved, loaded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import decayprune as dp
from decayprune.structures.example import ExampleInputs, arguments, outputs
from decayprune.structures.structure_map import Refusal
from decayprune.surgery.compare import compare, nothing_to_compare, remember, remember_training

Draw = Callable[[], ExampleInputs]
Make = Callable[[], tuple[nn.Module, Draw]]
"""Builds a model with random weights; the second value draws inputs for it, others each time."""

BUDGET, RATE = 0.6, 1e-3


class Failure(Exception):  # noqa: N818 - a finding, not a mistake
    """A step of the life of a model that went wrong, by name."""

    def __init__(self, step: str, words: str) -> None:
        super().__init__(words)
        self.step = step


@contextmanager
def step(name: str) -> Iterator[None]:
    """Whatever is raised inside is a failure of this step."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise Failure(name, f"{type(error).__name__}: {error}") from error


def measure(make: Make) -> dict[str, Any]:
    """What became of one model: a row of the results.

    Args:
        make: Builds it.

    Returns:
        ``outcome`` is ``"pruned"`` (to the budget, and everything agreed), ``"refused"`` (nothing
        can be pruned, or not to this budget), or the step that failed, with ``words``.
    """
    row: dict[str, Any] = {}
    try:
        _live(make, row)
    except Failure as failure:
        row |= {"outcome": failure.step, "words": str(failure)[:2000]}
    return row


def _live(make: Make, row: dict[str, Any]) -> None:
    torch.manual_seed(0)
    with step("made"):
        model, draw = make()
        randomise(model)
        inputs, others = draw(), draw()
        outputs(model.eval(), inputs)
    row["params_before"] = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    began = time.process_time()
    try:
        pruner = dp.DecayPruner(
            model,
            optimizer,
            inputs,
            budget=dp.Budget(macs=BUDGET),
            schedule=dp.Schedule(stop=1, rounds=1, decay_steps=2),
            rectify=None,
            round_to=None,  # the same on every machine
            residual_width=True,  # the width that is hardest to cut
        )
    except ValueError as error:
        with step("inspect"):
            row["left_alone"] = left_alone(dp.inspect(model, inputs).refusals)
        raise Failure("refused", str(error)) from error
    except Exception as error:
        raise Failure("build", f"{type(error).__name__}: {error}") from error
    row["build_seconds"] = round(time.process_time() - began, 1)
    row["groups"] = len(pruner.structures.groups)
    row["left_alone"] = left_alone(pruner.structures.refusals)
    with step("decay"):
        while not pruner.finished:
            train(model, inputs, optimizer)
            pruner.step()
    _cut(model, others, pruner, row)
    with step("training after"):
        train(model, others, optimizer)
    with step("saved and loaded"):
        _reload(model, make, others)
    reached = row["macs_after"] / row["macs_before"]
    if reached > BUDGET * 1.01:
        raise Failure("refused", f"{reached:.1%} of the MACs remain")
    row["outcome"] = "pruned"


def _cut(model: nn.Module, others: ExampleInputs, pruner: dp.DecayPruner, row: dict[str, Any]):
    """Compact, and compare on inputs that the library has not seen."""
    with step("other inputs"):
        before = [remember(model, others), remember_training(model, others)]
    with step("cut"):
        report = pruner.compact()
    row |= {"macs_before": report.macs_before, "macs_after": report.macs_after}
    row |= {"params_after": report.params_after, "removed": report.removed}
    for kept in before:
        if kept is None or not kept.exact or nothing_to_compare(kept):
            continue  # no training without targets, or with random numbers of its own
        mode = "training" if kept.training else "evaluation"
        found = compare(model, others, kept)
        row[f"error_{mode}"] = found.relative
        if not found.same:
            raise Failure("compared", f"{found} on other inputs, {mode} mode")


def _reload(model: nn.Module, make: Make, inputs: ExampleInputs) -> None:
    expected = remember(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        dp.save(folder, model)
        found = compare(dp.load(folder, make()[0]), inputs, expected)
    if not found.same:
        raise Failure("saved and loaded", str(found))


# ---------------------------------------------------------------- its parts


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters that are not neutral, nothing at zero, no dropout."""
    with torch.no_grad():
        for module in model.modules():
            if (
                isinstance(module, nn.modules.batchnorm._BatchNorm)
                and module.running_mean is not None
            ):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
            if "Norm" in type(module).__name__:
                for parameter in module.parameters(recurse=False):
                    if parameter.is_floating_point():
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if isinstance(getattr(module, "drop_prob", None), float):  # of whole branches
                module.drop_prob = 0.0
        for parameter in model.parameters():
            if parameter.numel() and not bool(parameter.any()):
                parameter.normal_(0, 0.02)


def train(model: nn.Module, inputs: ExampleInputs, optimizer: torch.optim.Optimizer) -> None:
    """One step down a random loss, in evaluation mode: one image is no batch to normalise over.

    Where no gradient arrives (a detector that found nothing, integers alone) it is random.
    """
    args, kwargs = arguments(inputs)
    optimizer.zero_grad()
    leaves = tree_flatten(model(*args, **kwargs))[0]
    found = [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]
    terms = [(v * torch.randn_like(v)).nan_to_num(0, 0, 0).mean() for v in found if v.numel()]
    if terms:
        torch.stack([term.float() for term in terms]).sum().backward()
    for parameter in model.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter) * RATE
        elif parameter.grad is not None:  # a deep network that is random throughout overflows
            parameter.grad.nan_to_num_(0, 0, 0)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise Failure("training", f"{name} is not finite after a step")


def left_alone(refusals: Iterable[Refusal]) -> list[tuple[str, int, str]]:
    """What stays whole: each reason, for how many layers, and the first of them with its width."""
    reasons: dict[str, list[str]] = {}
    for refusal in refusals:
        layer = f"{refusal.layer} ({refusal.width})"
        reasons.setdefault(refusal.reason, []).append(layer)
    return [(why, len(where), where[0]) for why, where in reasons.items()]
