"""Networks, recipes and settings of hosts that the study shares with its extensions; its grid."""

from __future__ import annotations

import itertools

from goals import SEEDS

from decayprune.app.run.methods import HOSTS, VARIANTS
from decayprune.app.study.trial import CONTROLS, Training, Trial

DENSE = Training(epochs=4, lr=0.1)
PRUNING = Training(epochs=1, lr=0.05)
RESNET = Trial(task="fashion-mnist", model="resnet20", dense=DENSE, training=PRUNING)
VGG = RESNET.with_(model="vgg16_slim")
VIT = RESNET.with_(
    model="vit_slim",
    dense=Training(epochs=4, lr=0.004, weight_decay=0.05, optimizer="adamw"),
    training=Training(epochs=1, lr=0.002, weight_decay=0.05, optimizer="adamw"),
)
SMOKE = Trial(
    task="digits",
    model="resnet8",
    dense=Training(epochs=15, lr=0.1),
    training=Training(epochs=15, lr=0.05),
    batch_size=64,
    bf16=False,
)
OF_HOST = {
    # The published strength, 1e-3, is made for a hundred epochs and acts on nothing in one; this
    # one is the best for the host alone (results/oto.jsonl, made by probe.py --idea hosts.py).
    "dhspg": {"options": {"lmbda": 1.0, "tolerance_group_sparsity": 0.0}},
    # The published rates of tocks are those of a far longer run (results/ticks.jsonl).
    "gate-decorator": {"options": {"tock_lr": None}},
    "depgraph-sl": {"options": {"reg": 5e-4, "sparse": 0.33}},
}


def trials(
    base: Trial, hosts: tuple[str, ...], budgets: tuple[float, ...], variants: tuple[str, ...]
) -> list[Trial]:
    """The grid of some hosts, budgets and variants over all seeds."""
    return [
        base.with_(host=host, budget=budget, variant=variant, seed=seed, **OF_HOST.get(host, {}))
        for seed, host, budget, variant in itertools.product(range(SEEDS), hosts, budgets, variants)
    ]


def tiers() -> dict[int, list[Trial]]:
    """Trials by tier: 0 is a smoke test, 1 the core; each later one adds to those before."""
    low, core = (0.25, 0.125), ("default", "depgraph")
    others = tuple(host for host in HOSTS if host not in core)
    return {
        0: trials(SMOKE, HOSTS, (0.25,), VARIANTS) + trials(SMOKE, ("default",), (0.25,), CONTROLS),
        1: trials(RESNET, core, low, VARIANTS),
        2: trials(RESNET, others, low, VARIANTS),
        3: trials(RESNET, HOSTS, (0.5,), VARIANTS)
        + trials(RESNET, ("default",), low, CONTROLS)
        + trials(RESNET, ("depgraph",), low, ("rounds", "random_release"))
        + trials(VGG, HOSTS, (0.5, *low), VARIANTS)
        + trials(VIT, core, (0.5, *low), VARIANTS),
    }
