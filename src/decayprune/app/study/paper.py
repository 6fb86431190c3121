"""The paper's own tasks, with the hyper-parameters that its hosts published.

Each recipe is a :class:`Trial` whose variants are the rows of the paper's tables. What differs from
the published runs is said in ``departures``: nothing of it differs between the variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from decayprune.app.study.trial import Training, Trial


@dataclass(frozen=True)
class Recipe:
    """A published configuration.

    Attributes:
        trial: Seed 0 with everything on.
        published: FLOPs that remain and accuracy, in percent, of the host alone, with smooth
            pruning, and with self-rectifying, as the paper states them; None where it is silent.
        departures: What differs from the published runs.
    """

    trial: Trial
    published: tuple[tuple[float, float], ...] | None
    departures: tuple[str, ...] = ()


_STEPS = (0.25, 0.5, 0.75)
_NO_MIXUP = "no mixup"
_AT_BUDGET = "the target is a share of the MACs, not of the structures"


def _otov2(model: str, decay: float, start: float, budget: float, **options: float) -> Trial:
    """From scratch: batch 64, SGD without momentum at 0.1, a tenth every 75 of 300 epochs."""
    how = Training(epochs=300, lr=0.1, momentum=0.0, weight_decay=decay, milestones=_STEPS)
    return Trial(
        task="cifar10",
        model=model,
        host="dhspg",
        budget=budget,
        training=how,
        batch_size=64,
        start=start,
        options=options,
        bf16=False,
    )


def _depgraph(task: str, model: str, budget: float, *, sparse: bool) -> Trial:
    """Dense for 200 epochs; with sparse learning 100 epochs of it; fine-tuned for 100.

    The rate of each part falls at 60 and 80 of its 100 epochs and begins at 0.01 again; sparse
    learning has no weight decay.
    """
    dense = Training(epochs=200, lr=0.1, milestones=(0.6, 0.75, 0.9))
    how = Training(epochs=100, lr=0.01, milestones=(0.6, 0.8))
    if sparse:
        falls = (0.3, 0.4, 0.8, 0.9)
        how = Training(epochs=200, lr=0.01, milestones=falls, restarts=(0.5,))
    return Trial(
        task=task,
        model=model,
        host="depgraph-sl" if sparse else "depgraph",
        budget=budget,
        dense=dense,
        training=how,
        options={"reg": 5e-4, "sparse": 0.5, "sparse_weight_decay": 0.0} if sparse else {},
        bf16=False,
    )


def _gate(model: str, budget: float, share: float) -> Trial:
    """Dense for 160 epochs; ticks of one epoch, tocks of ten; fine-tuned for 40, at 0.01 again.

    One epoch of CIFAR-10 is 351 steps here (45,000 images, batch 128).
    """
    epochs = 730 if share > 0.002 else 360
    return Trial(
        task="cifar10",
        model=model,
        host="gate-decorator",
        budget=budget,
        dense=Training(epochs=160, lr=0.1, milestones=(0.5, 0.75)),
        training=Training(epochs=epochs, lr=0.01, restarts=(1 - 40 / epochs,)),
        options={
            "ticks": {"tick_steps": 351, "tock_steps": 3510, "ticks": 10, "share": share},
            "sparsity": 1e-3,
            "tick_lr": 1e-3,
            "tock_lr": (1e-3, 1e-2),
        },
        bf16=False,
    )


_FINE_TUNING = "fine-tuning falls along a cosine, not a triangle, and keeps its momentum"
_HELD_OUT = "5,000 training images are held out for validation"

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "vgg16-cifar10-otov2": Recipe(
            _otov2("vgg16", 5e-4, 50 / 300, 0.265, lmbda=5e-4, epsilon=0.9,
                   tolerance_group_sparsity=0.21),
            ((26.5, 93.4), (26.4, 93.6), (25.8, 93.8)),
            (_NO_MIXUP, _AT_BUDGET, _HELD_OUT),
        ),
        "resnet50-cifar10-otov2": Recipe(
            _otov2("resnet50", 1e-3, 10 / 300, 0.0996, epsilon=0.95),
            None,
            (_AT_BUDGET, _HELD_OUT),
        ),
        "resnet56-cifar10-depgraph": Recipe(
            _depgraph("cifar10", "resnet56", 1 / 2.11, sparse=False),
            ((47.2, 93.32), (46.7, 93.62), (47.1, 93.71)),
            (_HELD_OUT,),
        ),
        "resnet56-cifar10-depgraph-sl": Recipe(
            _depgraph("cifar10", "resnet56", 1 / 2.11, sparse=True),
            ((46.86, 93.84), (46.32, 93.96), (45.8, 94.13)),
            (_HELD_OUT,),
        ),
        "vgg19-cifar100-depgraph": Recipe(
            _depgraph("cifar100", "vgg19", 1 / 8.87, sparse=False), None, (_HELD_OUT,)
        ),
        "vgg19-cifar100-depgraph-sl": Recipe(
            _depgraph("cifar100", "vgg19", 1 / 8.92, sparse=True),
            None,
            (_HELD_OUT,),
        ),
        "vgg16-cifar10-gate-decorator": Recipe(
            _gate("vgg16", 0.0986, 0.005),
            ((9.86, 91.5), (9.88, 91.58), (9.79, 91.74)),
            (_HELD_OUT, _FINE_TUNING),
        ),
        "resnet56-cifar10-gate-decorator": Recipe(
            _gate("resnet56", 0.3, 0.002),
            None,
            (_HELD_OUT, _FINE_TUNING),
        ),
        "resnet50-imagenet-otov2": Recipe(
            Trial(
                task="imagenet",
                model="torchvision.models:resnet50",
                host="dhspg",
                budget=0.385,
                training=Training(
                    epochs=120, lr=0.1, weight_decay=0.0, milestones=(0.25, 0.5, 0.75)
                ),
                pretrained="resnet50-imagenet.pth",
                start=15 / 120,
                options={"epsilon": 0.95},
                bf16=False,
            ),
            None,
            (_NO_MIXUP, "no label smoothing", _AT_BUDGET, "one pass of 120 epochs"),
        ),
    }
)  # fmt: skip
"""The recipes of ``decayprune reproduce``, by name."""


def recipe(name: str, others: Iterable[str] = ()) -> Recipe:
    """One of :data:`RECIPES`.

    Args:
        name: Its name.
        others: That the command knows, too.

    Raises:
        ValueError: There is no such recipe.
    """
    if name not in RECIPES:
        known = "\n".join(f"  {item}" for item in [*others, *RECIPES])
        raise ValueError(f"decayprune reproduce knows these recipes:\n{known}\nfound {name!r}.")
    return RECIPES[name]
