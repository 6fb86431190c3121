"""Write measured figures into the README and the docs: ``python docs/tables.py [--check]``.

Between ``<!-- table:NAME -->`` and ``<!-- /table -->`` stands the table of
``benchmarks/results/NAME.json``; ``NAME.HOST`` takes only the runs of one host. A name without such
a file keeps what stands there. ``--check`` changes nothing and fails if a table is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pretrained_tables import first, pretrained, pretrained_arms, rates, untrained
from tables_markdown import machine, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARK = re.compile(
    r"(?P<begin><!-- table:(?P<name>[\w-]+)(\.(?P<part>[\w-]+))? -->\n).*?"
    r"(?P<end><!-- /table -->)",
    re.DOTALL,
)


def run(found: dict[str, Any]) -> str:
    """A report of ``decayprune prune --json``: accuracy, costs and time, before and after."""

    def counts(name: str, key: str) -> list[str]:
        before, after = found[f"{key}_before"], found[f"{key}_after"]
        return [name, f"{before:,}", f"{after:,}", f"{after / before:.1%} left"]

    accuracy = [found["accuracy_before"], found["accuracy_after"]]
    times = [found["latency_before_ms"], found["latency_after_ms"]]
    rows = [
        [
            "test accuracy",
            *(f"{a:.2%}" for a in accuracy),
            f"{100 * (accuracy[1] - accuracy[0]):+.2f} points",
        ],
        counts("MACs", "macs"),
        counts("parameters", "params"),
        [
            f"latency, batch of {found['batch_size_latency']}",
            *(f"{t:.1f} ms" for t in times),
            f"{times[0] / times[1]:.2f}x as fast",
        ],
    ]
    facts = (
        f"{found['decayed']} structures decayed, {found['released']} were released, "
        f"{found['removed']} removed. One run, seed {found['seed']}: {machine(found['machine'])}; "
        f"{machine(found['versions'])}.\n"
    )
    return f"{table(['', 'before', 'after', ''], rows)}\n{facts}"


def overhead(found: dict[str, Any]) -> str:
    """Ratios of benchmarks/overhead.py beside the bars they have to stay under."""
    rows = [
        [name, f"{found['figures'][name]:.3g}", f"{bar:g}"] for name, bar in found["bars"].items()
    ]
    detail = table(["", "measured", "at most"], rows)
    detail += f"\nMedian of {found['repeats']}; {machine(found['machine'])}.\n"
    return f"{detail}\n{_models(found['models'])}" if "models" in found else detail


def _models(found: dict[str, Any]) -> str:
    """Other networks, a line each: time and memory, and what is asked of an accelerator."""
    phases = ("idle", "decay, 10 %", "decay, 50 %", "selection")
    asks = ("decaying", "from a graph", "selection")
    rows = [
        [
            name,
            *(f"{one[phase]:.2g}" for phase in phases),
            *(f"{one[f'held, {phase}']:.1%}" for phase in phases[:3]),
            *(" / ".join(map(str, one["asks"][phase])) for phase in asks),
        ]
        for name, one in found.items()
    ]
    held = [f"held, {phase}" for phase in phases[:3]]
    return table(["network", *phases, *held, *(f"asks, {phase}" for phase in asks)], rows)


def calibration(found: dict[str, Any]) -> str:
    """What learning costs in training steps, a network a line."""
    keys = ("a batch, sensitivity", "a batch, variance", "pick, sensitivity", "in all")
    models = found["models"].items()
    rows = [[name, *(f"{of[k]:.2g}" for k in keys), f"{of['held']:.1f}x"] for name, of in models]
    head = ["network", *keys[:2], "the pick", f"{found['batches']} and the pick", "held"]
    return f"{table(head, rows)}\nMedian of {found['repeats']}; {machine(found['machine'])}.\n"


def hosts(found: dict[str, Any]) -> str:
    """The runs of benchmarks/hosts_fashion.py, one line per host and variant."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found["runs"]:
        groups.setdefault((one["host"] or "default", one["variant"]), []).append(one)

    def line(host: str, variant: str, runs: list[dict[str, Any]]) -> list[str]:
        def share(key: str) -> str:
            left = [one[f"{key}_after"] / one[f"{key}_before"] for one in runs]
            return f"{sum(left) / len(left):.1%}"

        after = " ".join(f"{one['accuracy_after']:.2%}" for one in runs)
        counts = [" ".join(str(one[key]) for one in runs) for key in ("released", "removed")]
        return [f"{host}, {variant}", after, share("macs"), share("params"), *counts]

    rows = [line(*names, runs) for names, runs in sorted(groups.items())]
    head = ["host, variant", "test accuracy", "MACs left", "parameters left", "released", "removed"]
    first = found["runs"][0]
    dense = sorted({(one["seed"], one["accuracy_before"]) for one in found["runs"]})
    facts = (
        f"Dense: {', '.join(f'{accuracy:.2%} (seed {seed})' for seed, accuracy in dense)}. "
        f"One figure per seed: {machine(found['machine'])}; {machine(found['versions'])}. "
        "The first run; the others differ in `--host`, `--variant`, `--seed` and `--out`:\n\n"
        f"```sh\n{first['command']}\n```\n"
    )
    return f"{table(head, rows)}\n{facts}"


def hosts_overhead(found: dict[str, Any]) -> str:
    """What a host adds to its base step, and its whole step, by phase."""
    figures, bars = found["figures"], found["bars"]
    phases = [name.removesuffix(", adds") for name in figures if name.endswith(", adds")]
    rows = []
    for phase in phases:
        bar = bars.get(f"{phase}, adds")
        values = [f"{figures[f'{phase}, {key}']:.2f}" for key in ("adds", "in all")]
        rows.append([phase, *values, "" if bar is None else f"{bar:g}"])
    facts = f"Median of {found['repeats']}; {machine(found['machine'])}.\n"
    return f"{table(['phase', 'adds', 'in all', 'goal: adds'], rows)}\n{facts}"


def repeated(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of all repeats, row by row."""
    return list(map(list, zip(*(repeat["rows"] for repeat in found["repeats"]), strict=True)))


def measured_on(found: dict[str, Any]) -> str:
    """The machine of all repeats, and what load each began and ended with."""
    loads = ", ".join("{} to {}".format(*repeat["load"]) for repeat in found["repeats"])
    return f"{machine(found['machine'])}. Load in each repeat: {loads}.\n"


def speed(found: dict[str, Any]) -> str:
    """Speed-ups at half of the MACs, each model in its faster format: medians over repeats."""

    def line(repeats: list[dict[str, Any]]) -> list[str]:
        one, ups = repeats[0], sorted(repeat["speedup"] for repeat in repeats)
        return [
            f"{one['model']}, batch of {one['batch_size']}, threads: {one['threads']}",
            "any" if one["round_to"] == "none" else f'`"{one["round_to"]}"`',
            one["memory_format"].replace("_", " "),
            f"{median(ups):.2f}x",
            f"{ups[0]:.2f} to {ups[-1]:.2f}",
            f"{one['goal']:.2f}x",
            "reached" if median(ups) >= one["goal"] else "missed",
        ]

    head = ["half the MACs of", "widths", "format", "faster", "repeats", "goal", ""]
    return f"{table(head, list(map(line, repeated(found))))}\n{measured_on(found)}"


def faults(found: dict[str, Any]) -> str:
    """What the scripts of benchmarks/faults counted."""

    def counted(counts: dict[str, int]) -> str:
        return ", ".join(f"{value:,} {key}" for key, value in counts.items())

    def line(name: str, key: str, tried: str, result: str, wrong: int) -> list[str]:
        return [name, tried, result, str(wrong), f"{found[key]['seconds'] / 60:.1f} min"]

    nets, files = found["networks"], found["fuzz"]
    refused = sum(nets["refused"].values())
    error = f"largest error {nets['worst_error']:.0e}, {nets['removed']:,} structures removed"
    results = [f"{kind}: {counted(files[kind])}" for kind in ("accidents", "forgeries")]
    rows = [
        *(
            line(
                f"kill -9, then `--resume`{key.removeprefix('kills')}",
                key,
                f"{kills['done']:,} kills of {kills['runs']} runs ({counted(kills['killed_in'])})",
                f"{kills['equal']} equal to the last byte",
                len(kills["different"]),
            )
            for key, kills in found.items()
            if key.startswith("kills")
        ),
        line(
            "random networks",
            "networks",
            f"{nets['done']:,}",
            f"{nets['exact']:,} exact ({error}), {refused} refused",
            len(nets["wrong"]),
        ),
        line(
            "damaged files",
            "fuzz",
            f"{files['done']:,}",
            "; ".join(results),
            len(files["wrong"]),
        ),
    ]
    head = ["", "tried", "outcome", "wrong", "time"]
    lines = [" | ".join(["", *row, ""]).strip() for row in (head, ["---"] * 5, *rows)]
    return "\n".join(lines) + f"\n\nSeed 0; {machine(found['machine'])}.\n"


def latency_budget(found: dict[str, Any]) -> str:
    """Models cut to a latency, and what was measured then."""

    def line(repeats: list[dict[str, Any]]) -> list[str]:
        head = [repeats[0]["model"], f"{repeats[0]['target']:g}"]
        if "refused" in repeats[0]:
            return [*head, "out of reach", "", ""]
        return [
            *head,
            ", ".join(f"{one['measured']:.3f}" for one in repeats),
            f"{median(one['macs'] for one in repeats):.2f}",
            f"{median(one['build_s'] for one in repeats):.0f} s",
        ]

    def errors(rows: list[dict[str, Any]]) -> str:
        off = [abs(one["error"]) for one in rows if "error" in one]
        return f"{median(off):.1%} in the median, {max(off):.1%} at most"

    off = "; ".join(errors(repeat["rows"]) for repeat in found["repeats"])
    head = ["", "budget", "measured, in each repeat", "MACs left", "building the pruner"]
    lines = table(head, list(map(line, repeated(found))))
    return f"{lines}\nOff by, repeat by repeat: {off}. {measured_on(found)}"


def rounding(found: dict[str, Any]) -> str:
    """What fast widths cost in accuracy, and what they gain in time."""

    def pair(one: dict[str, Any], name: str, how: str) -> str:
        values = [one[f"{name}_{arm}"] for arm in ("any", "auto")]
        return "" if None in values else " → ".join(format(value, how) for value in values)

    rows = [
        [
            f"{one['model']}, {one['budget']:.0%}" if one["budget"] else one["model"],
            {"auto": "sixteen steps", "second": "eight", "before": "four"}[one["auto"]],
            pair(one, "accuracy", ".2%"),
            f"{one['difference']:+.2f} ({one['low']:+.2f} … {one['high']:+.2f})",
            f"{one['won']} of {one['pairs']}",
            pair(one, "macs", ".1%"),
            pair(one, "speedup", ".2f"),
        ]
        for one in found["rows"]
    ]
    head = ["MACs left", "fast widths", "accuracy", "difference (95 %)", "won", "MACs", "faster"]
    return f"{table(head, rows)}\n{machine(found['machine'])}.\n"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "calibration": calibration,
    "faults": faults,
    "fashion-mnist": run,
    "hosts_fashion": hosts,
    "hosts_overhead": hosts_overhead,
    "latency_budget": latency_budget,
    "latency_budget_compiled": latency_budget,
    "latency_budget_onnxruntime": latency_budget,
    "overhead": overhead,
    "pretrained": pretrained,
    "pretrained_half": pretrained_arms,
    "pretrained_half_long": pretrained_arms,
    "pretrained_images": pretrained,
    "pretrained_images_anew": pretrained_arms,
    "pretrained_images_half": pretrained_arms,
    "pretrained_images_long": pretrained_arms,
    "pretrained_short": pretrained_arms,
    "pretrained_untrained": untrained,
    "pretrained_untrained_images": untrained,
    "rates": rates,
    "rounding": rounding,
    "speed": speed,
}


def of_host(found: dict[str, Any], host: str) -> dict[str, Any]:
    """The runs, or the figures, of one host alone."""
    runs = [one for one in found.get("runs", []) if one["host"] == host]
    figures = {
        name.removeprefix(f"{host}: "): value
        for name, value in found.get("figures", {}).items()
        if name.startswith(f"{host}: ")
    }
    bars = {name.removeprefix(f"{host}: "): bar for name, bar in found.get("bars", {}).items()}
    return {**found, "runs": runs, "figures": figures, "bars": bars}


def filled(text: str) -> str:
    """Replace every table whose figures are there."""

    def fill(mark: re.Match[str]) -> str:
        path = RESULTS / f"{mark['name']}.json"
        if mark["name"] not in TABLES or not path.is_file():
            return mark[0]
        found = json.loads(path.read_text(encoding="utf-8"))
        if mark["part"] == "first":
            found = first(found)
        elif mark["part"]:
            found = of_host(found, mark["part"])
            if not (found.get("runs") or found.get("figures")):
                return mark[0]
        return f"{mark['begin']}{TABLES[mark['name']](found)}{mark['end']}"

    return MARK.sub(fill, text)


def main() -> None:
    """Rewrite the pages, or only look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a table is out of date")
    check = parser.parse_args().check
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new, encoding="utf-8")
    if stale and check:
        raise SystemExit(f"Out of date: {', '.join(stale)}. Run python docs/tables.py")


if __name__ == "__main__":
    main()
