"""Paired statistics of finished runs: what smooth pruning gains over the host alone.

Runs are paired by :func:`start`: both of a pair began with the same weights and saw the same
batches, so the difference is free of what these do. Intervals are t intervals of the mean
difference; a few seeds that a host ruins can carry a mean, so the median, the Hodges-Lehmann
estimate and the exact signed-rank test stand beside it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

Run = Mapping[str, Any]
K = TypeVar("K", bound=Hashable)


class Gain(NamedTuple):
    """A mean paired difference.

    Attributes:
        mean: In the unit of the values.
        low: Lower end of the 95 % interval; NaN with fewer than two pairs.
        high: Upper end.
        won: Pairs with a positive difference.
        pairs: How many.
        median: Of the differences.
        shift: Their Hodges-Lehmann estimate, see :func:`hodges_lehmann`.
        p: Of the exact Wilcoxon test, two-sided, see :func:`signed_rank_p`.
    """

    mean: float
    low: float
    high: float
    won: int
    pairs: int
    median: float = math.nan
    shift: float = math.nan
    p: float = math.nan

    @property
    def words(self) -> str:
        """As a table shows it: the mean, and the interval if there is one."""
        interval = "" if math.isnan(self.low) else f" ({self.low:+.2f} … {self.high:+.2f})"
        return f"{self.mean:+.2f}{interval}"


def gain(values: Sequence[float], others: Sequence[float]) -> Gain:
    """Paired gain of ``values`` over ``others``, with its 95 % t interval.

    Args:
        values: One per seed.
        others: Of the same seeds, in the same order.

    Raises:
        ValueError: There is no pair, or one lacks its other half.
        ModuleNotFoundError: scipy is not installed.

    Example:
        >>> found = gain([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
        >>> round(found.mean, 3), round(found.low, 3), found.won
        (2.0, -0.484, 3)
    """
    if not values or len(values) != len(others):
        raise ValueError(f"Expected pairs; found {len(values)} and {len(others)} values.")
    differences = [a - b for a, b in zip(values, others, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    half = math.nan
    if n > 1:
        half = float(_stats().t.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Gain(
        mean,
        mean - half,
        mean + half,
        sum(d > 0 for d in differences),
        n,
        statistics.median(differences),
        hodges_lehmann(differences),
        signed_rank_p(differences) if n > 1 else 1.0,
    )


def hodges_lehmann(differences: Sequence[float]) -> float:
    """Median of the means of all pairs of differences, each with itself too.

    Source: Hodges and Lehmann, Annals of Mathematical Statistics 34 (1963).

    Example:
        >>> hodges_lehmann([1.0, 2.0, 30.0])
        8.75
    """
    pairs = itertools.combinations_with_replacement(differences, 2)
    return statistics.median((a + b) / 2 for a, b in pairs)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test: is the median difference zero?

    Zeros are left out, ties share their mean rank. Every sign pattern of those ranks counts as
    equally likely, so eight seeds that all agree give 2 / 256.

    Source: Wilcoxon, Biometrics Bulletin 1 (1945).

    Example:
        >>> signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
        0.0078125
    """
    kept = [d for d in differences if d]
    if not kept:
        return 1.0
    # Twice the ranks are whole numbers, ties included, so sums of them can be counted.
    ranks = [round(2 * rank) for rank in _stats().rankdata([abs(d) for d in kept])]
    ways = {0: 1}
    for rank in ranks:
        after = dict(ways)
        for total, count in ways.items():
            after[total + rank] = after.get(total + rank, 0) + count
        ways = after
    positive = sum(rank for rank, d in zip(ranks, kept, strict=True) if d > 0)
    smaller = min(positive, sum(ranks) - positive)
    tail = sum(count for total, count in ways.items() if total <= smaller)
    return min(1.0, float(2 * tail / 2 ** len(kept)))


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """Adjusted p of each member of a declared family (Holm's step-down method).

    Args:
        p_values: Of every member; the family is declared before they are known.

    Returns:
        The same keys in the same order; a member is significant at 5 % where its value is below.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted, largest = {}, 0.0
    for place, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[key]))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


def _stats() -> Any:
    """Scipy's statistics."""
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "statistics over several seeds need scipy, which is not installed: "
            "pip install 'decayprune[study]'"
        ) from error
    return stats


def start(run: Run) -> tuple[int, str]:
    """What both runs of a pair share: the seed, and the weights that they began with.

    The seed alone would not do: networks that two processors train differ in their last bits.

    Args:
        run: A finished one.
    """
    return run["trial"]["seed"], run["dense_digest"]


def paired(values: Mapping[K, float], others: Mapping[K, float]) -> Gain | None:
    """Gain of ``values`` over ``others`` where both have a start; None where there is no pair.

    Args:
        values: By seed, or by :func:`start`.
        others: By the same.
    """
    both = [key for key in values if key in others]
    if not both:
        return None
    return gain([values[key] for key in both], [others[key] for key in both])


def summary(
    runs: Iterable[Run], *, against: str = "alone", score: str = "test_accuracy"
) -> list[dict[str, Any]]:
    """One row per task, model, host, budget and variant; accuracies in percent.

    Args:
        runs: Finished ones.
        against: The variant that gains are measured against.
        score: Which accuracy; ``validation_accuracy`` for choices.

    Returns:
        Rows of plain values; a gain is None where there is no pair.
    """
    cells: dict[tuple[Any, ...], dict[str, list[Run]]] = {}
    for run in runs:
        trial = run["trial"]
        cells.setdefault(_cell(trial), {}).setdefault(trial["variant"], []).append(run)
    rows = []
    for variants in cells.values():
        base = variants.get(against, [])
        rows += [_row(found, base, against, score) for found in variants.values()]
    known = list(_NAMES)
    return sorted(
        rows,
        key=lambda row: (*(row[n] for n in (*_TABLE, "budget")), known.index(row["variant"])),
    )


def _cell(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    """Everything that two runs of a pair share."""
    return tuple(
        (name, repr(value))
        for name, value in sorted(trial.items())
        if name not in ("variant", "seed")
    )


def _row(runs: Sequence[Run], base: Sequence[Run], against: str, score: str) -> dict[str, Any]:
    trial = runs[0]["trial"]
    accuracy = [100 * run[score] for run in runs]
    row = {name: trial[name] for name in ("task", "model", "host", "variant", "budget")}
    row |= {
        "seeds": len(runs),
        "acc_mean": statistics.fmean(accuracy),
        "acc_std": statistics.stdev(accuracy) if len(runs) > 1 else None,
        "dense_mean": 100 * statistics.fmean(run["dense_test_accuracy"] for run in runs),
        "macs_ratio": statistics.fmean(r["macs_after"] / r["macs_before"] for r in runs),
        "params_ratio": statistics.fmean(r["params_after"] / r["params_before"] for r in runs),
        "speedup": statistics.median(run["latency"]["speedup"] for run in runs),
        "released_mean": statistics.fmean(run["events"]["released"] for run in runs),
    }
    found = None
    if trial["variant"] != against:
        mine, others = ({start(run): 100 * run[score] for run in of} for of in (runs, base))
        found = paired(mine, others)
    known = found is not None and found.pairs > 1
    return row | {
        "against": against,
        "pairs": found.pairs if found else 0,
        "gain_mean": found.mean if found else None,
        "gain_ci95_low": found.low if found and known else None,
        "gain_ci95_high": found.high if found and known else None,
        "gain_median": found.median if found else None,
        "gain_shift": found.shift if found else None,
        "gain_p": found.p if found and known else None,
        "seeds_won": found.won if found else None,
    }


def gained(row: Mapping[str, Any]) -> str:
    """The gain of a row in words; empty where there is no pair.

    Args:
        row: Of :func:`summary`.
    """
    if row["gain_mean"] is None:
        return ""
    low, high = row["gain_ci95_low"], row["gain_ci95_high"]
    ends = (math.nan, math.nan) if low is None else (low, high)
    return Gain(row["gain_mean"], ends[0], ends[1], row["seeds_won"], row["pairs"]).words


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as Markdown: a table for each task, model and host.

    Args:
        rows: Of :func:`summary`.
    """
    lines = []
    for key, group in itertools.groupby(rows, lambda row: tuple(row[name] for name in _TABLE)):
        task, model, host = key
        lines += [f"**{model} on {task}, {host}**", ""]
        lines += [
            "| budget | variant | MACs | params | time | accuracy | gain (95 %) | median, HL "
            "| won, p | released |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [*map(_line, group), ""]
    return "\n".join(lines)


_TABLE = ("task", "model", "host")


def _line(row: Mapping[str, Any]) -> str:
    spread = "" if row["acc_std"] is None else f" ± {row['acc_std']:.2f}"
    won = middle = ""
    if row["gain_mean"] is not None:
        p = "" if row["gain_p"] is None else f", {row['gain_p']:.3f}"
        won = f"{row['seeds_won']} of {row['pairs']}{p}"
        middle = f"{row['gain_median']:+.2f}, {row['gain_shift']:+.2f}"
    return (
        f"| {row['budget']:.1%} | {_NAMES[row['variant']]} "
        f"| {row['macs_ratio']:.1%} | {row['params_ratio']:.1%} | {row['speedup']:.2f}x "
        f"| {row['acc_mean']:.2f}{spread} | {gained(row)} | {middle} | {won} "
        f"| {row['released_mean']:.0f} |"
    )


_NAMES = {
    "alone": "host alone",
    "sp": "+SP",
    "sp_sr": "+SP+SR",
    "rounds": "abrupt, ten rounds",
    "random_release": "+SP, random release",
    "random_selection": "random selection, +SP+SR",
    "small": "small network from scratch",
    "longer": "dense, trained on",
}
