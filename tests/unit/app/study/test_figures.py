import itertools
import math
import random
import sys
from typing import Any

import pytest
from scipy import stats

from decayprune.app.study import figures


def run(variant: str, seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    trial = {"task": "t", "model": "m", "host": "default", "budget": 0.25, "options": {}}
    return {
        "trial": {**trial, "variant": variant, "seed": seed, **changes},
        "test_accuracy": accuracy,
        "validation_accuracy": accuracy / 2,
        "dense_test_accuracy": 0.9,
        "dense_digest": "made here",
        "macs_before": 1000,
        "macs_after": 240,
        "params_before": 100,
        "params_after": 30,
        "events": {"released": 4},
        "latency": {"before_ms": 30.0, "after_ms": 10.0, "speedup": 3.0},
    }


def test_gains_are_those_of_a_paired_t_interval_by_hand() -> None:
    found = figures.gain([3.0, 5.0, 4.0, 6.0], [2.0, 5.5, 3.0, 4.0])
    differences = [1.0, -0.5, 1.0, 2.0]
    mean = sum(differences) / 4
    variance = sum((d - mean) ** 2 for d in differences) / 3
    half = 3.182446 * math.sqrt(variance / 4)  # t, three degrees of freedom, 97.5 %
    assert (found.mean, found.won, found.pairs) == (mean, 3, 4)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=1e-5)


def test_one_pair_has_no_interval_and_none_is_refused() -> None:
    assert math.isnan(figures.gain([2.0], [1.0]).low)
    with pytest.raises(ValueError, match="Expected pairs"):
        figures.gain([], [])
    with pytest.raises(ValueError, match="found 2 and 1"):
        figures.gain([1.0, 2.0], [1.0])


def test_rows_pair_seeds_within_a_cell_and_hold_every_key() -> None:
    runs = [run("alone", 0, 0.80), run("alone", 1, 0.70), run("alone", 2, 0.10)]
    runs += [run("sp_sr", 1, 0.75), run("sp_sr", 0, 0.82), run("sp_sr", 0, 0.5, budget=0.5)]
    rows = figures.summary(runs)
    assert [(r["budget"], r["variant"], r["seeds"]) for r in rows] == [
        (0.25, "alone", 3),
        (0.25, "sp_sr", 2),
        (0.5, "sp_sr", 1),
    ]
    ours = rows[1]
    assert set(ours) >= {
        "task", "model", "host", "variant", "budget", "seeds", "acc_mean", "acc_std", "macs_ratio",
        "params_ratio", "gain_mean", "gain_ci95_low", "gain_ci95_high", "released_mean",
    }  # fmt: skip
    assert ours["gain_mean"] == pytest.approx(3.5)  # (2 + 5) / 2: seed 2 has no pair
    assert ours["gain_ci95_low"] < 3.5 < ours["gain_ci95_high"]
    assert (ours["macs_ratio"], ours["params_ratio"], ours["released_mean"]) == (0.24, 0.3, 4)
    assert (ours["seeds_won"], ours["speedup"]) == (2, 3.0)
    assert rows[0]["gain_mean"] is None
    assert rows[2]["gain_mean"] is None  # no host alone at that budget
    assert rows[2]["acc_std"] is None


def test_what_began_with_other_weights_is_no_pair() -> None:
    elsewhere = {"dense_digest": "made elsewhere"}
    runs = [run("alone", 0, 0.80), run("alone", 1, 0.70), run("sp_sr", 0, 0.81)]
    runs += [run("sp_sr", 1, 0.60) | elsewhere, run("alone", 0, 0.50) | elsewhere]
    alone, ours = figures.summary(runs)
    assert (alone["seeds"], ours["seeds"], ours["pairs"]) == (3, 2, 1)
    assert ours["gain_mean"] == pytest.approx(1.0)


def test_choices_are_made_on_validation() -> None:
    runs = [run("sp", 0, 0.6), run("sp_sr", 0, 0.8)]
    row = figures.summary(runs, against="sp", score="validation_accuracy")[1]
    assert row["gain_mean"] == pytest.approx(10.0)
    assert row["gain_ci95_low"] is None


def test_the_table_has_a_line_for_every_row() -> None:
    rows = figures.summary([run("alone", 0, 0.8), run("sp", 0, 0.9), run("alone", 1, 0.8)])
    lines = figures.markdown(rows).splitlines()
    assert lines[0] == "**m on t, default**"
    assert len(lines) == 4 + len(rows)
    assert "| host alone | 24.0% | 30.0% | 3.00x | 80.00 ± 0.00 |" in lines[4]
    assert lines[5].endswith("| 90.00 | +10.00 | +10.00, +10.00 | 1 of 1 | 4 |")


@pytest.mark.parametrize("seed", range(5))
def test_signed_rank_p_counts_the_patterns_of_signs(seed: int) -> None:
    draw = random.Random(seed)
    differences = [draw.choice([-1, 1]) * draw.randint(0, 5) / 4 for _ in range(9)]  # ties, zeros
    kept = [d for d in differences if d]
    ranks = stats.rankdata([abs(d) for d in kept])
    centre = sum(ranks) / 2
    seen = abs(sum(r for r, d in zip(ranks, kept, strict=True) if d > 0) - centre)
    patterns = list(itertools.product((0, 1), repeat=len(kept)))
    far = sum(
        abs(sum(r * on for r, on in zip(ranks, pattern, strict=True)) - centre) >= seen - 1e-9
        for pattern in patterns
    )
    assert figures.signed_rank_p(differences) == pytest.approx(far / len(patterns))


def test_signed_rank_p_is_scipys_where_nothing_ties() -> None:
    differences = [0.3, -0.1, 1.2, 0.7, 2.2, -0.45, 0.9, 0.05, 1.7, 3.0, -0.2, 0.61]
    wanted = stats.wilcoxon(differences, method="exact").pvalue
    assert figures.signed_rank_p(differences) == pytest.approx(wanted)
    assert figures.signed_rank_p([0.0, 0.0]) == 1.0


def test_hodges_lehmann_is_where_the_signed_ranks_balance() -> None:
    differences = [0.3, -0.1, 14.2, 0.7, 2.2, 9.0, 0.05]
    shift = figures.hodges_lehmann(differences)
    moved = [d - shift for d in differences]
    ranks = stats.rankdata([abs(d) for d in moved])
    positive = sum(r for r, d in zip(ranks, moved, strict=True) if d > 0)
    # Its own pair sits at zero, so half a rank may stand on either side.
    assert positive == pytest.approx(sum(ranks) / 2, abs=1)


def test_holm_refuses_what_the_closed_test_of_bonferronis_refuses() -> None:
    found = figures.holm({"a": 0.04, "b": 0.001, "c": 0.02, "d": 0.9})
    # By hand: every subset that holds a member is tested at its size, the worst of them counts.
    given = {"a": 0.04, "b": 0.001, "c": 0.02, "d": 0.9}
    for name in given:
        subsets = [
            set(group)
            for size in range(1, 5)
            for group in itertools.combinations(given, size)
            if name in group
        ]
        worst = max(min(1.0, len(group) * min(given[n] for n in group)) for group in subsets)
        assert found[name] == pytest.approx(worst)
    assert list(found) == ["a", "b", "c", "d"]


def test_a_mean_that_one_seed_carries_is_shown_for_what_it_is() -> None:
    found = figures.gain([40.0, 1.0, 2.0, 1.5], [0.0, 0.0, 0.0, 0.0])
    assert (found.mean, found.median, found.p) == (11.125, 1.75, 0.125)
    rows = figures.summary(
        [run("alone", s, 0.5) for s in range(3)]
        + [run("sp_sr", s, 0.6 + s / 100) for s in range(3)]
    )
    line = figures.markdown(rows).splitlines()[5]
    assert "| +11.00, +11.00 | 3 of 3, 0.250 |" in line


def test_without_scipy_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert math.isnan(figures.gain([2.0], [1.0]).low)  # a single pair has no interval
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'decayprune\[study\]'"):
        figures.gain([2.0, 3.0], [1.0, 1.0])
