r"""A probe: prune one small network in well under a minute, to try an idea before it costs hours.

    python benchmarks/paper/probe.py budget=0.25 schedule.decay_steps=70 \
        --against schedule.decay_steps=1 rectify=none --seeds 100-103

Every ``name=value`` changes one setting: a field of ``Probe`` below, or, with a prefix, any
argument of the library (``schedule.rounds=5``, ``rectify.extra=0.2``, ``pruner.scope=local``);
``x.name=value`` reaches an idea (``--idea file.py``). ``--against`` names the changes that make
the baseline; baselines that were run before are read from the JSONL file, the rest is run.

A network trained on half of the training images is pruned and judged on the other half, never on
test images. So the figures are comparable with each other only, and the seeds of the final table
(0 ...) are left alone: begin at 100. Fast because the data lie in memory as bytes, at half size
(``size=28`` for all of it), the forward pass runs in bfloat16 with channels last, and the model is
cut as soon as the pruner has finished.

An idea is a file with ``setup(run)``: it may replace ``run.pruner`` (anything with ``observe``,
``step``, ``finished``), ``run.loss(images, targets)``, ``run.rate(step)``, and append to
``run.after_step``, a list of functions called with the number of the step.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

import decayprune as dp
from decayprune.app.run import data as datasets
from decayprune.app.run import models
from decayprune.app.run.batches import Augmentation, MemoryBatches, seed_all
from decayprune.app.run.loop import cosine, evaluate
from decayprune.app.study.controls import RandomRelease
from decayprune.method.lifecycle import LifecycleState
from decayprune.selection.importance import normalised

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "decayprune" / "probe"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is pruned and how; ``None`` leaves a choice to the library."""

    model: str = "resnet20"
    size: int = 14  # pixels; 28 is four times as slow
    images: int = 30_000
    dense_epochs: int = 8
    dense_lr: float = 0.1
    batch: int = 128
    budget: float = 0.125  # MACs that remain
    steps: int = 350  # in all, pruning included
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 1.0
    rectify: str = "default"  # default | none | thresholds | tournament | random | score
    teacher: float = 0.0  # weight of the dense model's soft targets
    bn: int = 0  # batches to re-estimate BatchNorm from at the end
    schedule: dict[str, Any] = field(default_factory=dict)
    rectifying: dict[str, Any] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    x: dict[str, Any] = field(default_factory=dict)  # for ideas
    idea: str = ""

    def with_(self, changes: list[str]) -> Probe:
        """The same with some ``name=value`` changes."""
        new = self
        for change in changes:
            name, _, text = change.partition("=")
            with suppress(json.JSONDecodeError):
                text = json.loads(text)
            head, _, rest = name.partition(".")
            if rest:
                head = {"rectify": "rectifying"}.get(head, head)
                new = replace(new, **{head: {**getattr(new, head), rest: text}})
            elif name in {f.name for f in fields(self)}:
                new = replace(new, **{name: text})
            else:
                raise SystemExit(f"{name!r} is no setting; there are {[*asdict(self)]}")
        return new


class Run:
    """One network being pruned; what an idea gets into its hands."""

    def __init__(self, probe: Probe, seed: int) -> None:
        self.probe, self.seed = probe, seed
        self.train, self.judge, self.glance = splits(probe, seed)
        self.dense = dense_model(probe, seed)
        self.model = copy.deepcopy(self.dense).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=probe.lr,
            momentum=probe.momentum,
            weight_decay=probe.weight_decay,
        )
        seed_all(seed)
        self.example = torch.zeros(1, 1, probe.size, probe.size)
        self.pruner: Any = self._pruner()
        self.after_step: list[Callable[[int], None]] = []
        self.last_loss = self.grad_norm = float("nan")  # of the step just taken, before clipping
        self.loss: Callable[[Tensor, Tensor], Tensor] = self._loss
        self.rate: Callable[[int], float] = lambda step: cosine(step, 0, probe.steps, probe.lr)
        if probe.idea:
            spec = importlib.util.spec_from_file_location("idea", probe.idea)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.setup(self)

    def _pruner(self) -> dp.DecayPruner:
        p = self.probe
        chosen = {**vars(dp.Schedule.for_run(p.steps)), **p.schedule}
        rule = {"rule": p.rectify} if p.rectify in ("thresholds", "tournament") else {}
        rectify = None if p.rectify == "none" else dp.Rectify(**rule, **p.rectifying)
        if p.rectify == "random":
            rectify = RandomRelease(seed=self.seed, **p.rectifying)
        pruner = dp.DecayPruner(
            self.model,
            self.optimizer,
            self.example,
            budget=dp.Budget(macs=p.budget),
            schedule=dp.Schedule(**chosen),
            rectify=rectify,
            **{"round_to": None, "residual_width": True, **p.pruner},
        )
        if p.rectify == "score":
            release_by_score(pruner)
        return pruner

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self.model(images).float()
        loss = F.cross_entropy(logits, targets)
        if self.probe.teacher:
            with torch.no_grad():
                soft = self.dense.eval()(images).float().softmax(1)
            loss = loss + self.probe.teacher * F.cross_entropy(logits, soft)
        return loss

    def go(self, curve: int = 0) -> dict[str, Any]:
        """Prune and train for all steps; figures."""
        p, points, report, begun = self.probe, [], None, time.process_time()
        self.model.train()  # Torch-Pruning's constructor leaves evaluation mode behind
        for step in range(p.steps):
            epoch, position = divmod(step, len(self.train))
            if position == 0:
                batches = self.train.epoch(epoch)
            images, targets = next(batches)
            set_rate(self.optimizer, self.rate(step))
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.loss(images.contiguous(memory_format=torch.channels_last), targets)
            loss.backward()
            if report is None:
                self.pruner.observe()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), p.clip)
            self.last_loss, self.grad_norm = loss.item(), norm.item()
            self.optimizer.step()
            if report is None:
                self.pruner.step()
            for function in self.after_step:
                function(step)
            if report is None and self.pruner.finished and step > 0:
                report = self.pruner.compact()
            self.optimizer.zero_grad()
            if curve and (step + 1) % curve == 0:
                accuracy = evaluate(self.model, self.glance, bf16=True)
                points.append((step + 1, round(loss.item(), 4), round(100 * accuracy, 2)))
        if report is None:
            raise SystemExit("The budget was not met within the steps of the probe.")
        if p.bn:
            reestimate(self.model, self.train, p.bn)
        kinds = [event.kind for event in getattr(self.pruner, "events", [])]
        return {
            "accuracy": 100 * evaluate(self.model, self.judge, bf16=True),
            "macs": report.macs_after / report.macs_before,
            "params": report.params_after / report.params_before,
            "released": kinds.count("release"),
            "widths": [after for _, _, after in report.widths],
            "cpu_seconds": round(time.process_time() - begun, 1),
            **({"curve": points} if points else {}),
        }


def release_by_score(pruner: dp.DecayPruner) -> None:
    """Release those of the highest score instead of the most work: what was enrolled last."""
    chosen = pruner._selector.releasable

    def best_first(state: LifecycleState, step: int, ids: Tensor) -> Tensor:
        score = normalised(state.score, pruner.structures.group_of)[ids]
        return chosen(state, step, ids[score.argsort(descending=True)])

    pruner._selector.releasable = best_first


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def reestimate(model: nn.Module, batches: MemoryBatches, count: int) -> None:
    """Measure the running means and variances of BatchNorm anew."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for _, (images, _) in zip(range(count), batches.epoch(0), strict=False):
        model(images)
    for norm in norms:
        norm.momentum = 0.1


_splits: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}


def splits(probe: Probe, seed: int) -> tuple[MemoryBatches, MemoryBatches, MemoryBatches]:
    """Batches to train on, to judge by, and a few to glance at on the way."""
    key = (probe.size,)
    if key not in _splits:
        full = datasets.load("fashion-mnist", Path("~/.cache/decayprune").expanduser(), 64, 0)
        images = torch.cat([full.train.images, full.validation.images])
        targets = torch.cat([full.train.targets, full.validation.targets])
        if probe.size != 28:
            images = F.adaptive_avg_pool2d(images.float(), probe.size).round().byte()
        _splits[key] = images, targets
    images, targets = _splits[key]
    mean, std = datasets._statistics(images)
    n = probe.images
    shift = 2 if probe.size == 28 else 1
    train = MemoryBatches(
        images[:n], targets[:n], mean, std, probe.batch, True, seed, Augmentation(True, shift)
    )
    judge = MemoryBatches(images[n:], targets[n:], mean, std, 1000)
    return train, judge, MemoryBatches(images[-3000:], targets[-3000:], mean, std, 1000)


def dense_model(probe: Probe, seed: int) -> nn.Module:
    """The dense network of a seed: trained once, then read from the cache."""
    seed_all(seed)
    model = models.build(probe.model, 1, 10, probe.size).to(memory_format=torch.channels_last)
    file = CACHE / (f"{probe.model}-{probe.size}px-{probe.images}-{probe.dense_epochs}ep-{seed}.pt")
    if file.is_file():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    train, judge, _ = splits(replace(probe, batch=128), seed)
    total = probe.dense_epochs * len(train)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=probe.dense_lr, momentum=0.9, weight_decay=5e-4
    )
    for epoch in range(probe.dense_epochs):
        for i, (images, targets) in enumerate(train.epoch(epoch)):
            step = epoch * len(train) + i
            warm = min(1.0, (step + 1) / 100)
            set_rate(optimizer, warm * cosine(step, 0, total, probe.dense_lr))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    print(f"dense, seed {seed}: {100 * evaluate(model, judge, bf16=True):.2f}", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    torch.save(model.state_dict(), part)
    part.replace(file)
    return model


def state_of_code() -> str:
    """The commit, with a mark when the library was changed since."""
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    source = Path(dp.__file__).parent
    git = ["git", "-C", str(source), "status", "--porcelain", "-uno", "--", "."]
    return commit + "+" * bool(subprocess.run(git, capture_output=True, text=True).stdout)


def go(probe: Probe, seed: int, out: Path, *, curve: int = 0, cached: bool = False) -> dict:
    """One run, or the same run as it was kept before; appended to the JSONL file."""
    settings = asdict(probe)
    if cached and out.is_file():
        for line in reversed(out.read_text().splitlines()):
            row = json.loads(line)
            if row["settings"] == settings and row["seed"] == seed:
                return row
    row = {"settings": settings, "seed": seed, "code": state_of_code()}
    row |= Run(probe, seed).go(curve)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % t interval."""
    if len(values) < 2:
        return values[0], float("nan")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def numbers(text: str) -> list[int]:
    """``100-103,110`` as a list."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("changes", nargs="*", metavar="name=value")
    parser.add_argument("--against", nargs="*", metavar="name=value", help="makes the baseline")
    parser.add_argument("--seeds", type=numbers, default=[100, 101])
    parser.add_argument("--idea", default="", help="file with setup(run); not for the baseline")
    parser.add_argument("--curve", type=int, default=0, help="glance at it every so many steps")
    parser.add_argument("--reuse", action="store_true", help="do not rerun what is in the file")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "probe.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = None if given.against is None else Probe().with_(given.changes + given.against)
    probe = Probe(idea=given.idea).with_(given.changes)
    mine, gains = [], []
    for seed in given.seeds:
        row = go(probe, seed, given.out, curve=given.curve, cached=given.reuse)
        mine.append(row["accuracy"])
        line = f"seed {seed}: {row['accuracy']:.2f}  MACs {row['macs']:.3f}  "
        line += f"released {row['released']}  {row['cpu_seconds']} s"
        if base is not None:
            other = go(base, seed, given.out, cached=True)
            gains.append(row["accuracy"] - other["accuracy"])
            line += f"  | baseline {other['accuracy']:.2f}, gain {gains[-1]:+.2f}"
            if abs(row["macs"] / other["macs"] - 1) > 0.01:
                line += f", UNEQUAL: baseline has MACs {other['macs']:.3f}"
        print(line, flush=True)
        for point in row.get("curve", []):
            print("    step {}: loss {}, accuracy {}".format(*point))
    print("mean {:.2f} +- {:.2f}".format(*interval(mine)), end="")
    won = sum(gain > 0 for gain in gains)
    tail = "  | gain {:+.2f} +- {:.2f}".format(*interval(gains)) if gains else ""
    print(f"{tail}, won {won} of {len(gains)}" if gains else "")


if __name__ == "__main__":
    main()
