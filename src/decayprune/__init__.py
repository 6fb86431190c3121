"""Structured pruning that is smooth, corrects itself, and finishes the job.

A structured pruner usually removes a redundant channel in one step, and the network pays for the
jolt. Here a redundant structure *decays*: after each optimizer step its norm is a little shorter,
while everything, that structure included, goes on training. A structure whose gradient keeps
resisting is *released*, and another one takes its place. What has reached zero is removed
physically, in place, with the optimizer's state sliced along and the outputs checked::

    import decayprune as dp

    pruner = dp.DecayPruner(
        model, optimizer, example_inputs,
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule.for_run(total_steps),
    )
    for inputs, targets in loader:
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step(); pruner.step(); optimizer.zero_grad()

    report = pruner.compact()
    dp.save("folder", model)

The method is the Decay Pruning Method (arXiv 2406.03879); ``docs/deviations.md`` says what the
paper states and what is our own definition.
"""

from decayprune.checkpoint.checkpoint import load, save
from decayprune.checkpoint.fields import CheckpointError
from decayprune.checkpoint.structure import reshape, structure
from decayprune.cost import Budget
from decayprune.deploy.export import ExportError, export
from decayprune.distill import Distill
from decayprune.inspection import Inspection, inspect
from decayprune.latency.benchmark import benchmark
from decayprune.latency.hardware import Hardware
from decayprune.method.lifecycle import Event
from decayprune.method.rectify import Rectify
from decayprune.method.selector import Selection, Selector
from decayprune.one_shot import prune_one_shot
from decayprune.pruner import DecayPruner
from decayprune.selection.schedule import Schedule
from decayprune.surgery.compact import CompactionReport
from decayprune.surgery.verified import CompactionError

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "CheckpointError",
    "CompactionError",
    "CompactionReport",
    "DecayPruner",
    "Distill",
    "Event",
    "ExportError",
    "Hardware",
    "Inspection",
    "Rectify",
    "Schedule",
    "Selection",
    "Selector",
    "__version__",
    "benchmark",
    "export",
    "inspect",
    "load",
    "prune_one_shot",
    "reshape",
    "save",
    "structure",
]
