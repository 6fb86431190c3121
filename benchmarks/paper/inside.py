"""What happens inside a run: around the moment of zero, and to the structures that are judged.

    python benchmarks/paper/inside.py run --seeds 100-101    # about a minute per seed and variant
    python benchmarks/paper/inside.py page                   # its part of docs/study.md

Runs are those of ``probe.py`` (ResNet-20 at half size, 12.5 % of the MACs, 350 steps). The first
part writes down loss, gradient norm and accuracy of the first steps. The second asks of every
structure that a tournament judges what its removal would cost there and then, and what the three
verdicts (most work, least magnitude, random) would cost together, at equal MACs.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from ablations import SCOPE
from pages import fill
from probe import Probe, Run, numbers
from scipy import stats

from decayprune.app.run.loop import evaluate
from decayprune.method.lifecycle import LifecycleState
from decayprune.selection.importance import normalised
from decayprune.structures import edits

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
FILE = HERE / "results" / "inside.json"

SHOWN = 100  # steps
EVERY = 5  # steps between two glances at the accuracy
VARIANTS = {
    "abrupt": (f"{SCOPE} rectify=none schedule.decay_steps=1", "#8a8f98"),
    "decay of the carriers": (f"{SCOPE} rectify=none", "#2f6fde"),
    "decay of all slices": (f"{SCOPE} rectify=none pruner.slices=all", "#2b8a3e"),
}
JUDGED = f"{SCOPE} rectify=tournament rectify.extra=0.3"


def curves(changes: str, seed: int) -> dict[str, list[float]]:
    """Loss and gradient norm of the first steps, and accuracy at some of them."""
    run = Run(Probe().with_(changes.split()), seed)
    found: dict[str, list[float]] = {"loss": [], "gradient": [], "accuracy": []}

    def note(step: int) -> None:
        if step >= SHOWN:
            return
        found["loss"].append(round(run.last_loss, 4))
        found["gradient"].append(round(run.grad_norm, 4))
        if (step + 1) % EVERY == 0:
            found["accuracy"].append(round(100 * evaluate(run.model, run.glance, bf16=True), 2))

    run.after_step.append(note)
    run.go()
    return found


class Witness:
    """Asks, before a run's selector answers, what each verdict would cost."""

    def __init__(self, run: Run) -> None:
        self._run, self._chosen = run, run.pruner._selector.releasable
        self._batch = next(iter(run.glance.epoch(0)))
        self.judged: list[dict[str, float]] = []
        self.together: dict[str, float] = {}
        run.pruner._selector.releasable = self.releasable

    def releasable(self, state: LifecycleState, step: int, ids: torch.Tensor) -> torch.Tensor:
        """As the selector does."""
        verdict = self._chosen(state, step, ids)
        if not self.judged:
            self._ask(state, step, ids, verdict)
        return verdict

    def _ask(
        self, state: LifecycleState, step: int, ids: torch.Tensor, verdict: torch.Tensor
    ) -> None:
        score = normalised(state.score, self._run.pruner.structures.group_of)
        base = self._loss(ids[:0])
        for structure in ids:
            self.judged.append(
                {
                    "work": float(state.statistics.work[structure]),
                    "score": float(score[structure]),
                    "cost": self._loss(structure[None]) - base,
                    "released": float(bool((verdict == structure).any())),
                }
            )
        by_score = ids[score[ids].argsort(descending=True)]
        drawn = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(step))]
        for name, order in (("work", ids), ("magnitude", by_score), ("random", drawn)):
            stays = self._chosen(state, step, order)
            self.together[name] = self._loss(ids[~torch.isin(ids, stays)]) - base

    @torch.no_grad()
    def _loss(self, ids: torch.Tensor) -> float:
        """Loss on held-out images without some structures, BatchNorm by the batch itself."""
        model = copy.deepcopy(self._run.model)
        pruner = self._run.pruner
        mask = torch.zeros_like(pruner.lifecycle.pruned).index_fill(0, ids, True)
        carriers = pruner._session.decayer._weights.carriers(mask)
        edits.zero_(carriers, dict(model.named_parameters()))
        images, targets = self._batch
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(images).float(), targets).item()


def judged(seed: int) -> dict[str, Any]:
    """What the structures that a tournament judges are worth, one by one and together."""
    run = Run(Probe().with_(JUDGED.split()), seed)
    witness = Witness(run)
    run.go()
    return {"judged": witness.judged, "together": witness.together}


def draw(found: dict[str, Any], file: Path) -> None:
    """Three panels: loss, gradient norm, accuracy, each the mean of the seeds."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2))
    for name, (_, colour) in VARIANTS.items():
        runs = [seed["curves"][name] for seed in found.values()]
        for axis, what in zip(axes, ("loss", "gradient", "accuracy"), strict=True):
            every_run = zip(*(run[what] for run in runs), strict=True)
            mean = [statistics.fmean(values) for values in every_run]
            every = EVERY if what == "accuracy" else 1
            steps = [every * (i + 1) for i in range(len(mean))]
            axis.plot(steps, mean, color=colour, label=name, linewidth=1.3)
    for axis, title in zip(
        axes, ("training loss", "gradient norm", "accuracy, held out (%)"), strict=True
    ):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step (zero at 35; abrupt: at 1)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    with plt.rc_context({"svg.hashsalt": file.name}):
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def table(found: dict[str, Any]) -> str:
    """What the judged structures are worth, per seed."""
    lines = [
        "| seed | judged | rank correlation of the cost with work | with magnitude "
        "| mean cost: released / the others | all at once by work / magnitude / random |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for seed, row in found.items():
        all_ = row["judged"]
        cost = [one["cost"] for one in all_]
        work, score = (
            stats.spearmanr([one[name] for one in all_], cost).statistic
            for name in ("work", "score")
        )
        released, others = (
            statistics.fmean(one["cost"] for one in all_ if one["released"] == kind)
            for kind in (1, 0)
        )
        sets = row["together"]
        lines.append(
            f"| {seed} | {len(all_)} | {work:+.2f} | {score:+.2f} "
            f"| {released:+.4f} / {others:+.4f} "
            f"| {sets['work']:+.2f} / {sets['magnitude']:+.2f} / {sets['random']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def write(page: Path = DOCS / "study.md") -> None:
    """Make the picture and the table in the page of results, if there is anything to show."""
    if not FILE.is_file():
        return
    found = json.loads(FILE.read_text())
    draw(found, page.parent / "images" / "inside.svg")
    text = f"![Around the moment of zero](images/inside.svg)\n\n{table(found)}"
    fill(page, "inside", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("do", choices=("run", "page"))
    parser.add_argument("--seeds", type=numbers, default=[100, 101])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.do == "page":
        write()
        return
    found = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for seed in given.seeds:
        if str(seed) in found:
            continue
        shown = {name: curves(changes, seed) for name, (changes, _) in VARIANTS.items()}
        found[str(seed)] = {"curves": shown, **judged(seed)}
        FILE.write_text(json.dumps(found) + "\n")
        print(f"seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
