"""Tables of the experiment on pretrained models, from what ``benchmarks/pretrained`` wrote."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from tables_markdown import machine, table

FIRST = (
    "sensitive_within",
    "torch_pruning_taylor_early",
    "dense_on",
    "sensitive_abrupt",
    "torch_pruning_taylor",
    "abrupt",
    "last_layers",
    "scratch_total",
)
"""The arms that a person has to know of to decide."""


def first(found: dict[str, Any]) -> dict[str, Any]:
    """A column with these arms alone."""
    return found | {"arms": {arm: one for arm, one in found["arms"].items() if arm in FIRST}}


def pretrained(found: dict[str, Any]) -> str:
    """A column of benchmarks/pretrained, best first, with what everything is compared with."""
    ends = [(fmean(one["accuracies"]), _row(one)) for one in found["arms"].values() if one["name"]]
    dense: dict[int, float] = {}
    for one in found["arms"].values():
        dense |= zip(one["seeds"], one["dense"], strict=True)
    whole = {"name": "the whole network, fine-tuned", "macs": 1.0, "speedup": 1.0, "compute": 1.0}
    values = list(dense.values())
    row = _row(whole | {"accuracies": values, "dense": values})
    ends.append((fmean(values), [*row[:-2], "", row[-1]]))
    rows = [row for _, row in sorted(ends, key=lambda end: -end[0])]
    head = [
        "",
        "MACs left",
        "as fast",
        "trained for",
        "accuracy (%)",
        "over the whole network",
        "seeds",
    ]
    facts = (
        f"After {found['steps']:,} steps of 32 examples, pruning included, or for as much compute. "
        "*Trained for*: compute in all, the dense fine-tuning being 1. Speeds: one thread of "
        f"{' and '.join(found['timed on'])}; {machine(found['machine'])}. `python "
        f"benchmarks/pretrained/run.py queue --task {found['task']}`, then `tables.py` beside it.\n"
    )
    return f"{table(head, rows)}\n{facts}"


def _row(one: dict[str, Any]) -> list[str]:
    return [
        one["name"],
        f"{one['macs']:.0%}",
        f"{one['speedup']:.1f}x",
        f"{one['compute']:.1f}",
        f"{fmean(one['accuracies']):.1f}",
        f"{fmean(one['accuracies']) - fmean(one['dense']):+.1f}",
        str(len(one["accuracies"])),
    ]


def pretrained_arms(found: dict[str, Any]) -> str:
    """All that ran in a column, best first by what seeds have in common with our default."""
    rows = []
    for one in found["arms"].values():
        gain = one["over sensitive_abrupt"] or ""
        cells = [
            f"{one['macs']:.0%}",
            f"{fmean(one['accuracies']):.1f}",
            gain,
            str(len(one["seeds"])),
        ]
        if one["name"] and len(one["seeds"]) > 1:
            rows.append((float(gain.split()[0]) if gain else 0.0, [one["name"], *cells]))
    rows.sort(key=lambda row: -row[0])
    head = ["", "MACs left", "accuracy (%)", "over calibrated, paired (95 %)", "seeds"]
    facts = (
        f"After {found['steps']:,} steps of 32 examples, pruning included; "
        f"{machine(found['machine'])}. `python benchmarks/pretrained/run.py queue --task "
        f"{found['task']}`, then `tables.py` beside it.\n"
    )
    return f"{table(head, [row for _, row in rows])}\n{facts}"


def untrained(found: dict[str, Any]) -> str:
    """Accuracy after a cut alone, and what it cost, by arm and by the share of the MACs left."""
    dense = fmean(found["dense"])
    budgets = [*next(iter(found["arms"].values()))]
    rows = [
        [name, *(f"{fmean(by[b]):.1f} ({fmean(by[b]) - dense:+.1f})" for b in budgets)]
        for name, by in found["arms"].items()
    ]
    head = ["MACs left", *(f"{float(budget):.0%}" for budget in budgets)]
    facts = (
        f"Accuracy (%), and over the whole network's {dense:.1f}; {len(found['seeds'])} seeds; "
        f"{'statistics of batch normalisation taken anew; ' if 'anew' in found['judged'] else ''}"
        f"{machine(found['machine'])}. `python benchmarks/pretrained/run.py untrained --task "
        f"{found['task']}`, then `tables.py` beside it.\n"
    )
    return f"{table(head, rows)}\n{facts}"


def rates(found: dict[str, dict[str, Any]]) -> str:
    """How an arm ends by its learning rate, in shares of the dense network's; the best in bold.

    Of two that are equally good that is the larger, as in the tuning.
    """
    rows, shares = [], ["1/10", "1/3", "1", "3", "10", "30"]
    for task, one in found.items():
        for name, by_rate in one["arms"].items():
            ends = {_share(float(lr) / one["dense_lr"]): value for lr, value in by_rate.items()}
            best = max(reversed(ends), key=lambda share: ends[share])
            shown = {k: f"**{v:.1f}**" if k == best else f"{v:.1f}" for k, v in ends.items()}
            rows.append([name, task, *(shown.get(share, "") for share in shares)])
    return table(["", "task", *shares], rows) + "\n"


def _share(value: float) -> str:
    """A power of ten or three of them, as rates are tried; 9e-3 for 1e-2 is such a one."""
    return f"1/{round(1 / value)}" if value < 0.9 else {9: "10"}.get(round(value), f"{value:.0f}")
