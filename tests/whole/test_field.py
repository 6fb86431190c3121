"""Models of the field, by what is special about each kind: cut exactly, or refused in truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp


def prune(model: nn.Module, x: Any, budget: float = 0.6) -> dp.CompactionReport:
    """Decay and cut, with gradients of chance."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        x,
        budget=dp.Budget(macs=budget),
        schedule=dp.Schedule(stop=2, rounds=1, decay_steps=2),
        rectify=None,
    )
    while not pruner.finished:
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-2
        optimizer.step()
        pruner.step()
    return pruner.compact()


def left_alone(model: nn.Module, x: Any) -> dict[str, str]:
    return {refusal.layer: refusal.reason for refusal in dp.inspect(model, x).refusals}


# ---------------------------------------------------------------- caches


def llama(**changes: Any) -> nn.Module:
    hf = pytest.importorskip("transformers", reason="caches are those of transformers")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=60,
        **changes,
    )
    return hf.LlamaForCausalLM(config).eval()


def test_heads_of_a_causal_lm_that_returns_its_cache_are_cut_and_generate_the_same() -> None:
    model, words = llama(), torch.arange(3, 15)[None]
    assert [g.layer for g in dp.inspect(model, words).groups if "self_attn" in g.layer]
    prune(model, words)
    assert model.model.layers[0].self_attn.q_proj.out_features < 64
    whole = model.generate(words, max_new_tokens=8, do_sample=False, pad_token_id=0)
    alone = model.generate(
        words, max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False
    )
    assert torch.equal(whole, alone)


class KeepsKeys(nn.Module):
    """Returns its keys and values in a form that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"use_cache": True})()
        self.qkv, self.out = nn.Linear(8, 96), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y), k, v


def test_a_cache_that_is_not_known_is_refused_with_the_way_out() -> None:
    reason = left_alone(KeepsKeys(), torch.randn(2, 5, 8))["qkv"]
    assert reason == "the model's output (if that is its key/value cache, pass use_cache=False)"


# ---------------------------------------------------------------- lists of images


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1))

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.net(torch.stack(images))


def test_macs_of_a_model_that_takes_a_list_of_images_are_those_of_one_image() -> None:
    model = Listed()
    alone = dp.inspect(model.net, torch.randn(1, 3, 10, 10)).macs
    for count in (1, 3):
        assert dp.inspect(model, ([torch.randn(3, 10, 10)] * count,)).macs == alone
