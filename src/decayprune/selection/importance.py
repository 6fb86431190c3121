"""Which structures matter: one raw score per structure, the lowest go first.

An importance is a function of the structure map and the parameters (their ``.grad`` included) that
returns ``S`` scores; anything with that signature can be passed to the pruner. One that reads
gradients says so, by an attribute ``reads_gradients = True`` (:func:`reading_gradients` sets it):
then a step without any is refused by name. :func:`normalised` makes scores of different layers
comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from decayprune.structures.structure_map import StructureMap
from decayprune.structures.sums import labelled, sum_products

Importance = Callable[[StructureMap, Mapping[str, Tensor]], Tensor]
"""``(structures, parameters by name) -> scores``, shape ``(S,)``, lowest goes first."""


def magnitude(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
    """L2 norm of all slices of a structure: rows, affine and consumers' columns.

    Source: group L2 importance as in DepGraph (arXiv 2301.12900), without its squaring.
    """
    size = structures.num_structures
    return sum_products(labelled(structures), size, parameters).sqrt()


def magnitude_l1(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
    """L1 norm of all slices of a structure."""
    signs = {name: tensor.detach().sign() for name, tensor in parameters.items()}
    return sum_products(labelled(structures), structures.num_structures, parameters, signs)


def reading_gradients(importance: Importance) -> Importance:
    """Declare that an importance reads ``.grad``; a decorator."""
    importance.reads_gradients = True  # type: ignore[attr-defined]
    return importance


@reading_gradients
def taylor(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
    """First-order change of the loss when a structure is scaled away: ``|<g, w>|`` of its columns.

    What its consumers read is linear in their columns whatever lies before them. Rows scale the
    function only as long as the activation does (ReLU, not GELU), and are read where no column is.

    Source: Molchanov et al., arXiv 1906.10771, eq. 8, on groups; columns instead of rows are ours.

    Raises:
        ValueError: No parameter has a gradient.
    """
    size = structures.num_structures
    columns, carriers = labelled(structures, ["column"]), labelled(structures, carriers=True)
    read = torch.zeros(size + 1, dtype=torch.bool, device="cpu")  # and a place for "none"
    for item in columns:
        read[item.structure] = True
    bare = [
        item._replace(structure=item.structure.where(~read[item.structure], -1))
        for item in carriers
    ]
    items = [*columns, *(item for item in bare if bool((item.structure >= 0).any()))]
    grads = {item.name: parameters[item.name].grad for item in items}
    if all(grad is None for grad in grads.values()):
        raise ValueError(
            "importance='taylor' reads gradients, and no parameter has any. Call pruner.step() "
            "after loss.backward() and optimizer.step(), and before optimizer.zero_grad()."
        )
    filled = {
        name: torch.zeros_like(parameters[name]) if grad is None else grad
        for name, grad in grads.items()
    }
    return sum_products(items, size, parameters, filled).abs()


def bn_scale(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
    """Sum of the absolute scales (gamma) of a structure's normalisers.

    Source: Network Slimming, Liu et al., arXiv 1708.06519.

    Raises:
        ValueError: A group has no normaliser with a scale.
    """
    scales = tuple(
        item for item in labelled(structures, ["affine"]) if item.name.endswith("weight")
    )
    covered = torch.zeros(structures.num_structures + 1, dtype=torch.bool, device="cpu")
    for item in scales:
        covered[item.structure] = True
    bare = [g.layer for g in structures.groups if not bool(covered[g.start : g.stop].all())]
    if bare:
        raise ValueError(
            "importance='bn_scale' needs a normaliser with a scale in every group; these have "
            f"none: {', '.join(bare[:5])}. Put them into ignored_layers, or use "
            "importance='magnitude'."
        )
    ones = {item.name: parameters[item.name].detach().sign() for item in scales}
    return sum_products(scales, structures.num_structures, parameters, ones)


def random(seed: int) -> Importance:
    """A fixed random order, the same at every round.

    Args:
        seed: Seed of the order.
    """

    def scores(structures: StructureMap, parameters: Mapping[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        # Within (0.5, 1.5): dividing by the group's mean then hardly changes the order.
        return torch.rand(structures.num_structures, generator=generator, device="cpu") + 0.5

    return scores


IMPORTANCES: dict[str, Importance] = {
    "magnitude": magnitude,
    "magnitude_l1": magnitude_l1,
    "taylor": taylor,
    "bn_scale": bn_scale,
}


def normalised(scores: Tensor, group_of: Tensor) -> Tensor:
    """Scores divided by the mean of their group, so that layers can be compared.

    Args:
        scores: Raw scores, shape ``(S,)``.
        group_of: Group of each structure, shape ``(S,)``.

    Returns:
        Shape ``(S,)``; groups whose mean is 0 keep their zeros.
    """
    groups = int(group_of.max()) + 1 if group_of.numel() else 0
    total = scores.new_zeros(groups).index_add_(0, group_of, scores)
    count = torch.bincount(group_of, minlength=groups).to(scores.dtype)
    mean = (total / count)[group_of]
    return torch.where(mean > 0, scores / mean.clamp(min=torch.finfo(scores.dtype).tiny), scores)


def refreshed(old: Tensor, new: Tensor, fresh: Tensor, group_of: Tensor) -> Tensor:
    """New scores for some structures, comparable with the old ones of the others.

    What has left a layer makes the rest of it, and the layers around it, smaller in every norm.
    Taken as they are, new scores would point at the layers that lost most, until those are empty.
    So each group's new scores are scaled to keep the mean that the same structures had before;
    their order within the group is new. Source: ours.

    Args:
        old: Scores so far, shape ``(S,)``; a group without any takes the new ones as they are.
        new: Scores of now, shape ``(S,)``.
        fresh: Whose scores are replaced, bool, shape ``(S,)``.
        group_of: Group of each structure, shape ``(S,)``.
    """
    groups = int(group_of.max()) + 1 if group_of.numel() else 0
    mine = fresh.to(new.dtype)
    before = new.new_zeros(groups).index_add_(0, group_of, old * mine)
    now = new.new_zeros(groups).index_add_(0, group_of, new * mine)
    known = (before > 0) & (now > 0)
    factor = torch.where(known, before / torch.where(known, now, 1.0), 1.0)
    return torch.where(fresh, new * factor[group_of], old)
