"""Your own importance: a function from structures and parameters to one score each.

The lowest scores go first. This one asks how much a structure's filters resemble another one of
the same layer (the distance to the nearest neighbour, as in pruning by geometric median): what
has a twin can leave. It is compared with the built-in magnitude and with a random choice.

Run it with ``python examples/own_importance.py``; a few seconds on one CPU core.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from decayprune.structures import StructureMap

STEPS = 80


def distance_to_nearest(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
    """Distance of each structure's output rows to the nearest other ones of its group, ``(S,)``."""
    scores = torch.zeros(structures.num_structures)
    for part in structures.slices:
        if part.role != "row" or parameters[part.name].dim() < 2:
            continue  # biases, affine, consumers' columns: not what this criterion looks at
        rows = parameters[part.name].detach().movedim(part.dim, 0).flatten(1).cpu().float()
        on = part.structure >= 0  # the others never leave
        structure, rows = part.structure[on], rows[on]
        apart = torch.cdist(rows, rows)
        apart.masked_fill_(structure[:, None] == structure[None], torch.inf)
        scores.index_add_(0, structure, apart.amin(1).nan_to_num(posinf=0.0))
    return scores


def batch(step: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Blurred stripes of ten directions in noise."""
    generator = torch.Generator().manual_seed(step)
    targets = torch.randint(10, (size,), generator=generator)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    angle = targets.view(-1, 1, 1) * torch.pi / 10
    stripes = torch.cos(1.6 * (x * angle.cos() + y * angle.sin()))
    return (stripes + 1.5 * torch.randn(size, 12, 12, generator=generator))[:, None], targets


def net() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def pruned_with(importance: object) -> tuple[float, dp.CompactionReport]:
    """Train, prune to a tenth of the MACs with one importance; accuracy and what was cut."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        batch(0)[0],
        budget=dp.Budget(macs=0.1),
        schedule=dp.Schedule.for_run(STEPS),
        importance=importance,
    )
    for step in range(STEPS):
        inputs, targets = batch(step)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    report = pruner.compact()
    inputs, targets = batch(-1, 500)
    with torch.no_grad():
        return float((model.eval()(inputs).argmax(1) == targets).float().mean()), report


def main() -> None:
    torch.set_num_threads(1)
    for importance in (distance_to_nearest, "magnitude", "random"):
        accuracy, report = pruned_with(importance)
        name = importance if isinstance(importance, str) else importance.__name__
        print(f"{name:20} accuracy {accuracy:.1%}")
    print(f"\nThe last one:\n{report}")


if __name__ == "__main__":
    main()
