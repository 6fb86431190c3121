"""What is run, fixed before the first run: arms, seeds, budgets, lengths. endpoints.md says why."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from decayprune.app.pretrained.arms import EARLY as EARLY_STEPS

HERE = Path(__file__).resolve().parent
RESULTS = {"minilm": HERE / "results", "efficientnet": HERE / "results" / "efficientnet"}
"""Tasks, and the folder of each: of ``runs``, ``tuning`` and ``rates.json``."""

AS_TRAINED = "accuracy"
ANEW = "accuracy_normalised_anew"
"""Ways of judging: running statistics as training leaves them, or taken anew in the end."""

BUDGETS = (0.25, 0.5)  # shares of the MACs that stay
STEPS = (300, 1200)  # after the dense fine-tuning, pruning included

DECISIVE = ("ridge_abrupt", "ridge_handover", "abrupt", "torch_pruning_taylor", "last_layers")
PRIMARY = ("abrupt", "sp_sr", "ridge_abrupt", "ridge_sp_sr", "ridge_handover")
SENSITIVE = ("sensitive_abrupt", "sensitive_sp_sr")  # added later: endpoints.md
BESIDE_IT = ("sensitive_sp", "sensitive_tpp", "sensitive_depth")
TAUGHT = ("sensitive_abrupt_distil", "torch_pruning_taylor_distil")
DISTILLED = ("ridge_abrupt_distil", "ridge_sp_sr_distil")
RIVALS = ("torch_pruning_taylor", "last_layers")
CONTROLS = (
    "torch_pruning",
    "sp",
    "variance_abrupt",
    "variance_sp_sr",
    "taylor_abrupt",
    "ridge_taylor_abrupt",
    "random_selection",
    "random_release",
    "scratch_extra",
    "scratch_extra_distil",
    "depth",
    "otov2",
    "otov2_divisible",  # on the images
)
RELEASES = ("ridge_by_work", "ridge_by_residual", "ridge_by_both", "ridge_by_random")
BACK = ("sp_sr_back", "ridge_sp_sr_back", "ridge_by_work_back")
LONG_CONTROLS = ("scratch_total", "scratch_total_distil")  # as much compute as dense and pruned
# The same, and pretrained.
EARLY = ("sensitive_early", "sensitive_within", "torch_pruning_taylor_early")
SOONER_OR_LATER = {"sensitive_within_15": 15, "sensitive_within_300": 300}  # not at EARLY_STEPS
# All has left at that step.
OTHERWISE = ("sensitive_within_sp_sr", "sensitive_within_rounds", "sensitive_within_depth")
WITHIN = {EARLY[1]: EARLY_STEPS} | SOONER_OR_LATER | dict.fromkeys(OTHERWISE, EARLY_STEPS)
CUT_AT = dict.fromkeys(EARLY, EARLY_STEPS) | WITHIN
"""Steps of the whole network, by arm, of those that are cut early; ``WITHIN``: in one loop."""
WHEN = (*SOONER_OR_LATER, *OTHERWISE)
EMPTY = (SENSITIVE[1], "sensitive_depth", "otov2", "sp_sr")  # not run long, nor at 50 %

ARMS = PRIMARY + SENSITIVE + BESIDE_IT + TAUGHT + DISTILLED + RIVALS + CONTROLS + RELEASES + BACK
ARMS += ("dense_on", *LONG_CONTROLS, *EARLY, *WHEN)

OTHER_SEEDS = 8
BLOCK = 4  # seeds that are finished before others begin
TWELVE = (*PRIMARY, SENSITIVE[0], *RIVALS, EARLY[1], "scratch_total")
SEEDS = dict.fromkeys(ARMS, OTHER_SEEDS) | dict.fromkeys(TWELVE, 12)  # at 25 % of the MACs
FRESH = range(8, 16)  # seeds of the images that confirm: endpoints.md
TIMING_STEPS = 10  # speeds of all arms are measured apart, on one machine, after so short a run
UNTRAINED_BUDGETS = (0.75, 0.5, 0.25)
TUNING_SEEDS = (100,)
RATES = (1e-4, 3e-4, 1e-3)  # tried for every arm; one more on the side where the best is at an end


TUNED_AS = {  # arms that take the rate of another, from which they differ in one thing
    "ridge_abrupt_distil": "ridge_abrupt",
    "ridge_sp_sr_distil": "ridge_sp_sr",
    "taylor_abrupt": "variance_abrupt",
    "ridge_taylor_abrupt": "ridge_abrupt",
    "depth": "ridge_abrupt",
    "sensitive_abrupt": "ridge_abrupt",
    "sensitive_sp_sr": "ridge_sp_sr",
    "sensitive_sp": "ridge_sp_sr",
    "sensitive_tpp": "ridge_sp_sr",
    "sensitive_depth": "ridge_abrupt",
    "sensitive_abrupt_distil": "ridge_abrupt",
    "torch_pruning_taylor_distil": "torch_pruning_taylor",
    "random_selection": "sp_sr",
    "random_release": "sp_sr",
    "sensitive_early": "ridge_abrupt",
    **dict.fromkeys(WITHIN, "ridge_abrupt"),
    "torch_pruning_taylor_early": "torch_pruning_taylor",
    "scratch_extra_distil": "scratch_extra",
    "scratch_total": "scratch_extra",
    "scratch_total_distil": "scratch_extra",
    **dict.fromkeys((*RELEASES, *BACK[1:]), "ridge_sp_sr"),
    "sp_sr_back": "sp_sr",
}


# The second task: the same arms, but that a network of convolutions has no last layers to drop.
IMAGES = ("ridge_abrupt", "abrupt", "torch_pruning_taylor", "ridge_sp_sr", "sp_sr")
HANDED = ("ridge_handover",)
IMAGES_TOO = ("dense_on", "torch_pruning", "variance_abrupt", "scratch_total")
IMAGES_CONTROLS = ("random_selection", "random_release", "otov2_divisible")  # more: endpoints.md
IMAGES_TUNED_AS = {  # smooth or not, the rate is that of the abrupt cut
    "ridge_sp_sr": "ridge_abrupt",
    "ridge_handover": "ridge_abrupt",
    "variance_abrupt": "ridge_abrupt",
    "sp_sr": "abrupt",
    **dict.fromkeys((*SENSITIVE, *BESIDE_IT, TAUGHT[0]), "ridge_abrupt"),
    **dict.fromkeys(WITHIN, "sensitive_early"),
    TAUGHT[1]: "torch_pruning_taylor",
    "torch_pruning": "torch_pruning_taylor",
    **dict.fromkeys(IMAGES_CONTROLS[:2], "abrupt"),
    **dict.fromkeys((*RELEASES, *BACK[1:]), "ridge_abrupt"),
    "sp_sr_back": "abrupt",
}


TIMED_AS = dict.fromkeys(CUT_AT, SENSITIVE[0]) | {EARLY[2]: RIVALS[0]}


@dataclass(frozen=True)
class Untrained:
    """What cuts cost before anything is trained: endpoints.md.

    Attributes:
        arms: That cut at once.
        budgets: Shares of the MACs that stay.
        seeds: As declared; the tables are of those that all arms have.
        judged: A way of judging.
    """

    arms: tuple[str, ...]
    budgets: tuple[float, ...]
    seeds: range
    judged: str = AS_TRAINED


UNTRAINED = {
    "minilm": Untrained(
        (SENSITIVE[0], "ridge_abrupt", "variance_abrupt", "abrupt", RIVALS[0], "torch_pruning"),
        (0.9, *UNTRAINED_BUDGETS),
        range(4),
    ),
    "efficientnet": Untrained(
        (SENSITIVE[0], "ridge_abrupt", "abrupt", RIVALS[0]), UNTRAINED_BUDGETS, range(3), ANEW
    ),
}


@dataclass(frozen=True)
class Confirmation:
    """What fresh seeds decide, at 25 % of the MACs, all of it Holm's family: endpoints.md.

    Attributes:
        task: Of its runs.
        steps: After the dense fine-tuning.
        seeds: On which nothing was chosen that makes the arm what it is.
        arm: That is put to the test.
        others: What it is compared with.
        judged: A way of judging, which is the key of the accuracy.
    """

    task: str
    steps: int
    seeds: range
    arm: str
    others: tuple[str, ...]
    judged: str = AS_TRAINED


CONFIRMATIONS = (
    Confirmation(
        "efficientnet", 1200, FRESH, SENSITIVE[0], ("torch_pruning_taylor", "abrupt"), ANEW
    ),
    Confirmation("efficientnet", 300, range(10, 16), EARLY[1], ("scratch_total",), ANEW),
    Confirmation("minilm", 1200, range(4, 12), EARLY[1], (*RIVALS, "scratch_total", "abrupt")),
)


def tuned_as(task: str, arm: str) -> str:
    """The arm whose learning rate an arm takes; its own if it is tuned."""
    others = TUNED_AS if task == "minilm" else IMAGES_TUNED_AS
    return others.get(arm, arm)


def timed_as(arm: str) -> str:
    """The arm whose model has the shape of an arm's, and costs less to make."""
    return "scratch_extra" if arm.startswith("scratch") else TIMED_AS.get(arm, arm)


def rate(task: str, arm: str) -> float | None:
    """The tuned learning rate of an arm; None as long as it is not tuned."""
    file = RESULTS[task] / "rates.json"
    rates = json.loads(file.read_text()) if file.is_file() else {}
    return rates.get(tuned_as(task, arm))


Run = tuple[str, int, int, float]
"""Arm, seed, steps and budget."""


def queue(task: str) -> list[Run]:
    """Every run, the important first.

    Four seeds get everything before the next four begin, and among them each part is complete for
    one seed before the next one: what has run is a comparison on fewer seeds.
    """
    quarter, half = ([(steps, budget) for steps in STEPS] for budget in BUDGETS)
    if task == "minilm":
        parts = [
            (DECISIVE, quarter[1:]),
            (SENSITIVE[:1], quarter),
            (SENSITIVE[1:] + BESIDE_IT + TAUGHT, quarter[:1]),
            (TAUGHT, quarter[1:]),
            (("scratch_total", "dense_on"), quarter[1:]),
            (DECISIVE, quarter[:1]),
            (RELEASES + BACK, quarter[:1]),
            (PRIMARY, quarter),
            (DISTILLED, quarter),
            (CONTROLS[:-1], quarter),
            (SENSITIVE[:1] + PRIMARY + RIVALS + ("dense_on",), half),
            (EARLY, quarter[1:]),
            (WHEN, quarter[1:]),
            (("scratch_total_distil",), quarter[1:]),
            (("scratch_total",), quarter[:1]),
            (EMPTY, quarter[1:] + half),
        ]
    else:
        parts = [(SENSITIVE + BESIDE_IT + TAUGHT, quarter[:1]), (SENSITIVE[:1], quarter[1:])]
        parts += [(HANDED + IMAGES + RELEASES + BACK, quarter[:1]), (IMAGES_TOO[:1], quarter[:1])]
        parts += [(IMAGES, quarter[1:])]
        parts += [(IMAGES_CONTROLS, quarter[:1])]
        parts += [(IMAGES_TOO, quarter), (SENSITIVE[:1] + IMAGES, half)]
    runs = [
        (arm, seed, steps, budget)
        for block in range(0, max(SEEDS.values()), BLOCK)
        for arms, cells in parts
        for seed in range(block, block + BLOCK)
        for (steps, budget), arm in itertools.product(cells, arms)
        if seed < (SEEDS[arm] if budget == BUDGETS[0] and task == "minilm" else OTHER_SEEDS)
    ]
    if task == "efficientnet":
        confirming = (SENSITIVE[0], "torch_pruning_taylor", "abrupt", "torch_pruning")
        confirming += ("scratch_total", *EARLY)
        cells = quarter[::-1]
        runs += [(arm, seed, *cell) for seed in FRESH for cell in cells for arm in confirming]
    return list(dict.fromkeys(runs))
