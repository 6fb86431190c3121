"""What the hosts cost per step on ResNet-50, as ratios to a plain optimizer step.

Run ``python benchmarks/hosts_overhead.py [--host NAME ...] [--write]``: one process, one thread,
fp32. Every host has one function that returns pairs of actions: one step in some phase, and the
base step it stands on; they are interleaved with ``SGD(momentum=0.9).step()``, and medians are
divided by its median. ``adds`` is what the phase costs beyond its base step, ``in all`` the whole
step. ``--write`` stores the figures with machine and versions in
``benchmarks/results/hosts_overhead.json`` (figures of hosts that were not run stay).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import nn

import decayprune as dp
from decayprune.hosts import DHSPG, HESSO, GateDecorator, TickTock, TorchPruningHost

RESULTS = Path(__file__).parent / "results" / "hosts_overhead.json"
BARS = {"dhspg: penalty phase, adds": 2.0, "hesso: decay with rectifying, adds": 0.6}
LONG = 10**6  # steps that no measurement reaches

WATCHED = dp.Rectify(rule="thresholds", t_rate=1.0)  # statistics, but no release

Action = Callable[[], object]
Phases = dict[str, tuple[Action, Action]]


def model_with_gradients() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return model


def dhspg() -> Phases:
    """Before the partition; all of the penalised set under the penalty; a tenth decaying."""
    inputs = torch.randn(1, 3, 64, 64)

    def host(**arguments: object) -> DHSPG:
        settings: dict[str, object] = {"momentum": 0.9, "decay_steps": LONG}
        return DHSPG(model_with_gradients(), inputs, 1e-4, **(settings | arguments))

    idle = host(start_step=LONG)
    penalised = host(lmbda=1e-6)  # too weak to catch anything: the phase lasts
    watched = dp.Rectify(rule="thresholds", t_rate=1.0)  # statistics, but no release
    enrolled = {"target_group_sparsity": 0.1, "stop_step": 1}
    decaying = host(**enrolled)
    rectified = host(**enrolled, rectify=watched)
    for one in (decaying, rectified):
        one.step()
        assert one.lifecycle.decaying.numel() > 1000
    return {
        "penalty phase": (penalised.step, idle.step),
        "decay": (decaying.step, idle.step),
        "decay with rectifying": (rectified.step, idle.step),
    }


def hesso() -> Phases:
    """A tenth of the structures decaying, as published, held, and watched; and a scoring step."""
    inputs = torch.randn(1, 3, 64, 64)

    def host(**arguments: object) -> HESSO:
        settings: dict[str, object] = {
            "momentum": 0.9,
            "target_group_sparsity": 0.1,
            "pruning_steps": LONG,
        }
        return HESSO(model_with_gradients(), inputs, 1e-4, **(settings | arguments))

    idle = host(start_step=LONG)
    watched = dp.Rectify(rule="thresholds", t_rate=1.0)
    published, held = host(), host(decay_steps=LONG)
    rectified = host(decay_steps=LONG, rectify=watched)
    for one in (published, held, rectified):
        one.step()
        assert one.lifecycle.decaying.numel() > 1000
    scoring = host(pruning_periods=LONG, target_group_sparsity=1e-4)  # every step is a period
    return {
        "decay as published": (published.step, idle.step),
        "decay": (held.step, idle.step),
        "decay with rectifying": (rectified.step, idle.step),
        "scoring step": (scoring.step, idle.step),
    }


def momentum(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


def both(optimizer: torch.optim.Optimizer, step: Action) -> Action:
    """An optimizer step and what its host does after it."""

    def together() -> None:
        optimizer.step()
        step()

    return together


def torch_pruning() -> Phases:
    """A tenth of the structures decaying, alone and watched."""
    import torch_pruning as tp

    inputs = torch.randn(1, 3, 64, 64)
    phases: Phases = {}
    for name, rectify in (("decay", None), ("decay with rectifying", WATCHED)):
        model = model_with_gradients()
        grads = {n: p.grad for n, p in model.named_parameters()}
        pruner = tp.pruner.MetaPruner(
            model,
            inputs,
            tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=0.1,
            ignored_layers=[model.fc],
        )
        for parameter_name, parameter in model.named_parameters():
            parameter.grad = grads[parameter_name]
        optimizer = momentum(model)
        host = TorchPruningHost(pruner, optimizer, inputs, decay_steps=LONG, rectify=rectify)
        together = both(optimizer, host.step)
        together()
        assert host.lifecycle.decaying.numel() > 1000
        phases[name] = (together, momentum(model_with_gradients()).step)
    return phases


def gate_decorator() -> Phases:
    """Tocks with a tenth of the gates closing, alone and watched; scoring in a tick."""
    inputs = torch.randn(1, 3, 64, 64)
    phases: Phases = {}
    for name, rectify in (("decay", None), ("decay with rectifying", WATCHED)):
        model = model_with_gradients()
        grads = {n: p.grad for n, p in model.named_parameters()}
        optimizer = momentum(model)
        host = GateDecorator(
            model,
            optimizer,
            inputs,
            budget=dp.Budget(macs=0.3),
            schedule=TickTock(tick_steps=1, tock_steps=LONG, ticks=1, share=0.1),
            decay_steps=LONG,
            rectify=rectify,
        )
        together = both(optimizer, host.step)
        host.steps = LONG  # the next step is a tick, which closes gates; then comes a tock
        together()
        assert host.lifecycle.decaying.numel() > 500
        for parameter_name, parameter in model.named_parameters():
            parameter.grad = grads[parameter_name]
        phases[name] = (together, momentum(model_with_gradients()).step)
    phases["scoring"] = (host.observe, lambda: None)
    return phases


HOSTS: dict[str, Callable[[], Phases]] = {
    "dhspg": dhspg,
    "hesso": hesso,
    "depgraph": torch_pruning,
    "gate-decorator": gate_decorator,
}


def timed(action: Action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> dict[str, float]:
    """Ratios of one host, interleaved with plain optimizer steps."""
    plain = torch.optim.SGD(model_with_gradients().parameters(), lr=1e-4, momentum=0.9)
    phases = HOSTS[name]()
    times: dict[str, list[float]] = {key: [] for key in ("plain", *phases)}
    added: dict[str, list[float]] = {key: [] for key in phases}
    for repeat in range(repeats + 2):
        base = timed(plain.step)
        steps = {key: (timed(step), timed(idle)) for key, (step, idle) in phases.items()}
        if repeat >= 2:
            times["plain"].append(base)
            for key, (whole, idle) in steps.items():
                times[key].append(whole)
                added[key].append(whole - idle)
    base = median(times["plain"])
    figures = {f"{name}: seconds of a plain step": base}
    for key in phases:
        figures[f"{name}: {key}, adds"] = median(added[key]) / base
        figures[f"{name}: {key}, in all"] = median(times[key]) / base
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", nargs="*", choices=[*HOSTS], default=[*HOSTS])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="store the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name in options.host:
        figures |= measure(name, options.repeats)
    for name, value in figures.items():
        bar = f"(bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:44} {value:8.4f} {bar}")
    if options.write:
        stored = json.loads(RESULTS.read_text())["figures"] if RESULTS.exists() else {}
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        }
        document = {
            "machine": machine,
            "repeats": options.repeats,
            "bars": BARS,
            "figures": stored | figures,
        }
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
