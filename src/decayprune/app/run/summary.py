"""The figures of a run, gathered into the one object that ``report.json`` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import decayprune as dp
from decayprune.app.run.methods import Pruning
from decayprune.app.run.objective import forward
from decayprune.app.run.settings import Settings
from decayprune.app.run.surroundings import machine, versions
from decayprune.latency.benchmark import Latency
from decayprune.surgery.compact import CompactionReport


def planned(pruner: Pruning, offset: int) -> dict[str, Any]:
    """What is to happen: steps of the rounds, the limits, and what cannot be pruned.

    Args:
        pruner: Just built.
        offset: Steps of the run before pruning begins.
    """
    schedule = pruner.schedule
    return {
        "rounds": [offset + step for step in pruner.rounds],
        "limits": {"stop": offset + schedule.stop, "decay_steps": schedule.decay_steps},
        "refusals": [
            {"layer": refusal.layer, "width": refusal.width, "reason": refusal.reason}
            for refusal in pruner.host.structures.refusals
        ],
    }


def compacted(report: CompactionReport) -> dict[str, Any]:
    """What the cut removed.

    Args:
        report: Of the cut.
    """
    return {
        "macs_before": report.macs_before,
        "macs_after": report.macs_after,
        "params_before": report.params_before,
        "params_after": report.params_after,
        "removed": report.removed,
        "max_abs_error": report.max_abs_error,
        "max_rel_error": report.max_rel_error,
        "widths": [
            {"layer": layer, "before": before, "after": after}
            for layer, before, after in report.widths
        ],
    }


def check_saved(folder: Path, dense: nn.Module, compact: nn.Module, inputs: Any) -> None:
    """Load what was saved into a fresh dense model: its outputs must be those of the compact one.

    Args:
        folder: Where the compact model was saved.
        dense: A model of the dense architecture; cut by this call.
        compact: The model that was saved.
        inputs: One batch.

    Raises:
        RuntimeError: The outputs differ.
    """
    loaded = dp.load(folder, dense).eval()
    compact.eval()
    with torch.no_grad():
        pairs = zip(
            _tensors(forward(compact, inputs)), _tensors(forward(loaded, inputs)), strict=True
        )
    apart = [float((one - other).abs().max()) for one, other in pairs if not one.equal(other)]
    if apart:
        worst = max(apart)
        raise RuntimeError(
            f"The model saved in {folder} should give exactly the outputs of the one in memory; "
            f"they differ by up to {worst:.1e}. Do not use the files; please report this."
        )


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _shortened(folder: str) -> str:
    """A folder below the home folder without the name of who lives there."""
    path, home = Path(folder), Path.home()
    return str("~" / path.relative_to(home)) if path.is_relative_to(home) else folder


def report(settings: Settings, figures: dict[str, Any], latency: Latency) -> dict[str, Any]:
    """The object of ``report.json``.

    Args:
        settings: Of the run.
        figures: Gathered on the way.
        latency: Measured at the end; under ``torch.compile`` too, if it is what counts.
    """
    before, after = latency.compiled or (latency.before_ms, latency.after_ms)
    return {
        "format": "decayprune-report",
        "version": 1,
        "settings": settings.to_dict() | {"data_dir": _shortened(settings.data_dir)},
        "repeat": settings.command(),
        "versions": versions(),
        "machine": machine(latency.threads),
        "dataset": settings.data or settings.dataset,
        "model": settings.model,
        "host": None if settings.host == "default" else settings.host,
        "variant": settings.variant,
        "seed": settings.seed,
        "budget": settings.budgets,
        "latency_before_ms": before,
        "latency_after_ms": after,
        "batch_size_latency": latency.batch_size,
        "latency_form": "eager" if latency.compiled is None else "compiled",
        "latencies": latency.to_dict(),
        **figures,
    }
