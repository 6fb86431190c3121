"""What people do otherwise: Torch-Pruning by itself, and leaving out the last layers.

Torch-Pruning works here without its host of this library: the host refuses ``prune_num_heads``
(how many heads a layer has left is kept by Torch-Pruning alone), and without it attention would
lose parts of every head, which the library does not take for structures.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable

import torch.nn.functional as F
import torch_pruning as tp
from loop import Batch
from minilm import Classifier, example, macs
from torch import nn

_GRID = 400  # ratios of the FFNs tried; its authors go to a budget in as many steps
_IMPORTANCES = {
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "taylor": tp.importance.GroupTaylorImportance,
}


def torch_pruned(
    model: Classifier, budget: float, importance: str, batches: Iterable[Batch]
) -> Classifier:
    """Heads and FFNs, the same share of every layer (its default), down to a budget of MACs.

    Of twelve heads the share of the budget stays, rounded; the FFNs make up for the rounding.

    Args:
        model: Dense; left as it is, but for its gradients.
        budget: Share of the MACs that stays at most.
        importance: ``"magnitude"`` (its group norm) or ``"taylor"`` (of these batches' loss).
        batches: For the gradients of ``"taylor"``.
    """
    if importance == "taylor":
        for ids, mask, labels in batches:
            F.cross_entropy(model(ids, mask), labels).backward()

    heads = model.bert.config.num_attention_heads
    of_heads = 1 - max(1, round(heads * budget)) / heads

    def cut(tick: int) -> Classifier:
        return _cut(model, of_heads, tick / _GRID, importance)

    found = cut(bisect_left(range(_GRID), True, key=lambda t: macs(cut(t)) <= budget * macs(model)))
    model.zero_grad()
    found.zero_grad()
    return found.train()


def _cut(dense: Classifier, of_heads: float, of_ffn: float, importance: str) -> Classifier:
    """A copy without a share of its heads and a share of its FFN channels."""
    model = copy.deepcopy(dense)
    for mine, its in zip(model.parameters(), dense.parameters(), strict=True):
        mine.grad = None if its.grad is None else its.grad.clone()
    heads: dict[nn.Module, int] = {}
    kept: list[nn.Module] = [model.head, model.bert.embeddings]
    layers = list(model.bert.encoder.layer)
    for layer in layers:
        attention = layer.attention.self
        for part in (attention.query, attention.key, attention.value):
            heads[part] = attention.num_attention_heads
        kept += [layer.attention.output.dense, layer.output.dense]  # the residual width
    pruner = tp.pruner.BasePruner(
        model,
        example(),
        importance=_IMPORTANCES[importance](),
        global_pruning=False,
        pruning_ratio=of_ffn,
        head_pruning_ratio=of_heads,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=kept,
    )
    pruner.step()
    for layer in layers:
        attention = layer.attention.self
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.all_head_size = attention.query.out_features
    return model


def dropped(model: Classifier, stay: int) -> Classifier:
    """The model with its first ``stay`` layers only, in place."""
    model.bert.encoder.layer = model.bert.encoder.layer[:stay]
    model.bert.config.num_hidden_layers = stay
    return model
