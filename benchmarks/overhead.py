"""What the pruner costs per step, as ratios to a plain optimizer step.

Run ``python benchmarks/overhead.py [--write]``: one process, one thread, fp32; ResNet-50 in detail,
then the phases of all networks (``--models-only``: nothing else). Every figure is the
median of interleaved repetitions, in processor time, divided by the median of
``SGD(momentum=0.9).step()`` measured in the same loop; building is divided by Torch-Pruning's graph
build plus pruner construction, cutting by its step plus two forward passes (extra
``torch-pruning``). ``--write`` stores the figures with machine and versions in
``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FunctionType, ModuleType
from typing import TypeVar

import accelerator
import torch
import torch_pruning as tp
import torchvision
from torch import nn

import decayprune as dp
from decayprune.app.run.batches import to_device
from decayprune.structures.example import outputs
from decayprune.surgery.compact import compact

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "overhead.json"
MODELS = ("resnet50", "convnext_tiny", "vit_b_16", "bert")
BARS = {
    "idle": 0.02,
    "decay, carriers": 0.2,
    "decay, all slices": 0.6,
    "selection round": 1.2,
    "state bytes / parameter bytes": 0.01,
    "build / Torch-Pruning": 1.5,
    "compact / (Torch-Pruning step + two forwards)": 2.0,
}


def model_with_gradients(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = torchvision.models.resnet50()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


def pruner_of(
    model: nn.Module, **arguments: object
) -> tuple[dp.DecayPruner, torch.optim.Optimizer]:
    optimizer = optimizer_of(model)
    settings = {
        "budget": dp.Budget(structures=0.9),
        "schedule": dp.Schedule(start=0, stop=10**6, rounds=1, decay_steps=10**6),
        "rectify": dp.Rectify(rule="thresholds", t_rate=1.0),  # statistics, but no release
        "residual_width": True,
    } | arguments
    return dp.DecayPruner(model, optimizer, torch.randn(1, 3, 64, 64), **settings), optimizer


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """What an action returns, and its seconds of processor time (waiting for others left out)."""
    start = time.thread_time()
    result = action()
    return result, time.thread_time() - start


def per_step(repeats: int) -> dict[str, float]:
    """Ratios of one pruner.step() in four phases, interleaved with plain optimizer steps."""
    plain = optimizer_of(model_with_gradients())
    late = dp.Schedule(start=10**6, stop=2 * 10**6, rounds=1, decay_steps=10)
    cases = {
        "idle": pruner_of(model_with_gradients(), schedule=late),
        "decay, carriers": pruner_of(model_with_gradients()),
        "decay, all slices": pruner_of(model_with_gradients(), slices="all"),
    }
    rounds = dp.Schedule(start=1, stop=10**6, rounds=10**6 - 1, decay_steps=10**6)
    tiny = dp.Budget(structures=0.999999)  # every step is a round that ranks and takes nothing new
    cases["selection round"] = pruner_of(
        model_with_gradients(), schedule=rounds, budget=tiny, rectify=None
    )
    times: dict[str, list[float]] = {name: [] for name in (*cases, "plain")}
    for repeat in range(repeats + 3):
        measured = {"plain": timed(plain.step)[1]}
        for name, (pruner, optimizer) in cases.items():
            optimizer.step()
            measured[name] = timed(pruner.step)[1]
        # What rectifying adds around the step happens in the optimizer's pre-hook.
        for name in ("decay, carriers", "decay, all slices"):
            measured[name] += timed(cases[name][0]._session.decayer.remember)[1]
        if repeat >= 3:
            for name, seconds in measured.items():
                times[name].append(seconds)
    assert cases["decay, carriers"][0].lifecycle.decaying.numel() > 1000
    base = median(times.pop("plain"))
    ratios = {name: median(values) / base for name, values in times.items()}
    state = cases["decay, carriers"][0].state_dict()["state"]
    model = cases["decay, carriers"][0].model
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = sum(v.numel() * v.element_size() for v in state.values())
    ratios["state bytes / parameter bytes"] = kept / held
    return ratios | {"seconds of a plain step": base}


# ---------------------------------------------------------------- other networks


def built(name: str) -> tuple[nn.Module, dict[str, torch.Tensor] | torch.Tensor]:
    """A network with gradients, and an example of its inputs.

    Args:
        name: A model of torchvision, or ``"bert"``: BERT-base.
    """
    torch.manual_seed(0)
    if name == "bert":
        from transformers import BertConfig, BertModel

        model: nn.Module = BertModel(BertConfig())
        inputs = {"input_ids": torch.randint(30522, (1, 16))}
    else:
        model = torchvision.models.get_model(name)
        pixels = 224 if name.startswith("vit") else 64
        inputs = torch.randn(1, 3, pixels, pixels)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model, inputs


PHASES: dict[str, dict[str, object]] = {
    "idle": {"schedule": dp.Schedule(start=10**6, stop=2 * 10**6, decay_steps=10)},
    "decay, 10 %": {"budget": dp.Budget(structures=0.9)},
    "decay, 50 %": {"budget": dp.Budget(structures=0.5)},
    # Every step is a round that ranks everybody and takes nobody new.
    "selection": {
        "schedule": dp.Schedule(start=1, stop=10**6, rounds=10**6 - 1, decay_steps=10**6),
        "budget": dp.Budget(structures=0.999999),
        "rectify": None,
    },
}


def of_model(name: str, repeats: int) -> dict[str, float]:
    """Ratios of one step in every phase, and bytes held per byte of parameters."""
    found = {}
    plain = optimizer_of(built(name)[0])
    for phase, arguments in PHASES.items():
        model, inputs = built(name)
        optimizer = optimizer_of(model)
        settings: dict[str, object] = {
            "budget": dp.Budget(structures=0.9),
            "schedule": dp.Schedule(start=0, stop=10**6, rounds=1, decay_steps=10**6),
            "rectify": dp.Rectify(rule="thresholds", t_rate=1.0),
            "round_to": None,
        }
        pruner = dp.DecayPruner(model, optimizer, inputs, **(settings | arguments))
        pruner._session._tried = True  # the trial cut is no part of a step
        ours, theirs = [], []
        for repeat in range(repeats + 3):
            seconds = timed(plain.step)[1]
            optimizer.step()
            own = timed(pruner.step)[1]
            if phase.startswith("decay"):  # what rectifying adds is done in the pre-hook
                own += timed(pruner._session.decayer.remember)[1]
            if repeat >= 3:
                theirs.append(seconds)
                ours.append(own)
        found[phase] = median(ours) / median(theirs)
        if phase != "selection":
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            found[f"held, {phase}"] = held(pruner) / size
        pruner.detach()
    return found


def held(pruner: dp.DecayPruner) -> int:
    """Bytes of tensors that are kept for the pruner, and for nobody else.

    Args:
        pruner: All that it refers to is looked at, but for what belongs to model or optimizer.
    """
    optimizers = pruner._session.optimizers
    own = [*pruner.model.parameters(), *pruner.model.buffers()]
    own += [p.grad for p in pruner.model.parameters() if p.grad is not None]
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    own += [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]
    seen, storages = set[int](), {value.untyped_storage().data_ptr() for value in own}
    waiting, total = [pruner], 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType)):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            if storage.data_ptr() not in storages:
                storages.add(storage.data_ptr())
                total += storage.nbytes()
        elif isinstance(thing, FunctionType):
            waiting += thing.__closure__ or ()
        else:
            waiting += gc.get_referents(thing)
    return total


def asked(name: str) -> dict[str, tuple[int, int, int]]:
    """Syncs, copies and launches of one step on a simulated accelerator, hooks included.

    Of a step that is repeated from a graph what is asked for beside it.

    Args:
        name: As for :func:`built`.
    """
    model, inputs = built(name)
    found = {}
    with accelerator.simulated():
        accelerator.moved(model)
        inputs = to_device(inputs, accelerator.DEVICE)
        optimizer = optimizer_of(model)
        arguments = {
            "budget": dp.Budget(structures=0.9),
            "schedule": dp.Schedule(start=3, stop=20, decay_steps=20),
        }
        pruner = dp.DecayPruner(model, optimizer, inputs, **arguments)
        pruner._session._tried = True  # the trial cut is no part of a step
        for phase in ("first", "idle", "selection", "decaying"):
            with accelerator.counting() as count:
                optimizer.step()
                pruner.step()
            found[phase] = count.all
        graph = accelerator.Graph()
        assert pruner.replayable
        with accelerator.recording(graph):
            optimizer.step()
            pruner.step()
        with accelerator.counting() as count:
            pruner.replay(graph)
        found["from a graph"] = count.all
    return found


def _once(dense: nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    model = model_with_gradients().eval()
    optimizer = optimizer_of(model)
    arguments = {
        "budget": dp.Budget(macs=0.5),
        "schedule": dp.Schedule(stop=10, decay_steps=1),
    }
    pruner, ours = timed(lambda: dp.DecayPruner(model, optimizer, inputs, **arguments))
    optimizer.step()
    pruner.step()
    gone = pruner.lifecycle.pruned
    arguments = {"example_inputs": inputs, "optimizers": [optimizer]}
    _, cut = timed(lambda: compact(model, pruner.structures, gone, **arguments))
    _, forward = timed(lambda: outputs(dense, inputs))
    other = copy.deepcopy(dense)
    arguments = {
        "importance": tp.importance.GroupMagnitudeImportance(p=2),
        "global_pruning": True,
        "pruning_ratio": 0.3,
        "ignored_layers": [other.fc],
    }
    graph = tp.DependencyGraph()
    _, built = timed(lambda: graph.build_dependency(other, example_inputs=inputs))
    kept, theirs = timed(lambda: tp.pruner.MetaPruner(other, inputs, **arguments))
    _, step = timed(kept.step)
    return {
        "ours": ours,
        "theirs": built + theirs,
        "theirs alone": theirs,
        "cut": cut,
        "step": step,
        "forward": forward,
    }


def build_and_cut(repeats: int) -> dict[str, float]:
    """Building the pruner and cutting, against Torch-Pruning, at 224 pixels."""
    inputs = torch.randn(1, 3, 224, 224)
    dense = model_with_gradients().eval()
    rows: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, seconds in _once(dense, inputs).items():
            rows[name].append(seconds)
    middle = {name: median(values) for name, values in rows.items()}
    return {
        "build / Torch-Pruning": middle["ours"] / middle["theirs"],
        "build / Torch-Pruning's pruner alone": middle["ours"] / middle["theirs alone"],
        "compact / (Torch-Pruning step + two forwards)": middle["cut"]
        / (middle["step"] + 2 * middle["forward"]),
        "seconds to build": middle["ours"],
        "seconds to compact": middle["cut"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="store the figures")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--models-only", action="store_true", help="and keep what is stored else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULTS.read_text()) if options.models_only else {}
    figures = stored.get("figures")
    if figures is None:
        figures = per_step(options.repeats) | build_and_cut(max(3, options.repeats // 6))
        for name, value in figures.items():
            bar = f"(bar {BARS[name]:g})" if name in BARS else ""
            print(f"{name:48} {value:8.4f} {bar}")
    models = dict(stored.get("models", {}))
    for name in options.models:
        figures_of = of_model(name, options.repeats)
        models[name] = {**figures_of, "asks": asked(name), "repeats": options.repeats}
        print(name, json.dumps(models[name], indent=1), flush=True)
    if options.write:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "torch_pruning": tp.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }
        document = {
            "machine": machine,
            "repeats": stored.get("repeats", options.repeats),
            "bars": BARS,
            "figures": figures,
            "models": models,
        }
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
