"""Models of the field, by what is special about each kind: cut exactly, or refused in truth."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import decayprune as dp
from cases import ScaledConv, StandardisedConv


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


# ---------------------------------------------------------------- computed weights


def old_weight_norm(layer: nn.Module, **options: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and everywhere in the field
        return nn.utils.weight_norm(layer, **options)


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


def reparametrised(norm: Any) -> nn.Module:
    """Plain, grouped, depthwise and transposed convolutions, and linear layers, all of them so."""
    return nn.Sequential(
        norm(nn.Conv1d(4, 32, 3)),
        nn.ReLU(),
        norm(nn.Conv1d(32, 32, 3, groups=4)),
        nn.ReLU(),
        norm(nn.Conv1d(32, 32, 3, groups=32)),
        nn.Tanh(),
        norm(nn.ConvTranspose1d(32, 24, 4, 2)),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        norm(nn.Linear(48, 40)),
        nn.ReLU(),
        norm(nn.Linear(40, 5)),
    ).double()


def standardised(layer: type[nn.Conv2d]) -> nn.Module:
    """Weight-standardised convolutions, plain and grouped; the second norm is over groups."""
    return nn.Sequential(
        layer(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        layer(16, 24, 3, 2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        layer(24, 16, 3, groups=2),
        nn.GroupNorm(2, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).double()


COMPUTED = {
    **{name: (lambda norm=norm: reparametrised(norm), (4, 20)) for name, norm in NORMS.items()},
    "standardised": (lambda: standardised(StandardisedConv), (3, 12, 12)),
    "standardised with gains": (lambda: standardised(ScaledConv), (3, 12, 12)),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_cut_exactly(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape = COMPUTED[kind]
    model = make()
    x, others = torch.randn(2, 4, *shape, dtype=torch.float64)
    free = {"0", "2", "6", "10"} if kind in NORMS else {"0", "3", "6"}
    assert {g.layer for g in dp.inspect(model, x).groups} == free
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        x,
        budget=dp.Budget(macs=0.4),
        schedule=dp.Schedule(stop=2, rounds=1, decay_steps=3),
    )
    while not pruner.finished:
        model.train()(x).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model(x)  # weights of the old norms are kept with their graph, which cannot be copied
    zeroed = copy.deepcopy(model)
    report = pruner.compact()
    assert report.macs_after <= 0.4 * report.macs_before
    assert report.params_after == sum(p.numel() for p in model.parameters())
    for training in (False, True, True):  # a power method has a memory of its own
        expected = zeroed.train(training)(others)
        torch.testing.assert_close(model.train(training)(others), expected, rtol=0, atol=1e-12)
    dp.save(tmp_path / "model", model)
    again = dp.load(tmp_path / "model", make()).eval()
    torch.testing.assert_close(again(others), model.eval()(others), rtol=0, atol=0)
    model.train()(others).sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
    second = dp.inspect(model, x)  # what was cut once can be cut again
    assert {g.layer for g in second.groups} == free
    assert second.macs == report.macs_after


def test_a_standardised_weight_cannot_leave_out_what_is_not_zero_by_itself() -> None:
    x = torch.randn(2, 3, 8, 8)
    half = nn.Sequential(ScaledConv(3, 8, 3), nn.Sigmoid(), ScaledConv(8, 4, 3), nn.Flatten())
    reasons = left_alone(half, x)
    assert reasons["0"].startswith("read by a standardised weight where it is not 0 any more")
    bare = nn.Sequential(StandardisedConv(3, 8, 3), nn.ReLU(), ScaledConv(8, 4, 3), nn.Flatten())
    assert left_alone(bare, x)["0"].startswith(
        "read by a standardised weight, and nothing scales it"
    )


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


# ---------------------------------------------------------------- recurrent layers


class Words(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.rnn = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.b, self.out = nn.Linear(48, 12), nn.Linear(12, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(torch.relu(self.b(self.rnn(self.embed(words))[0].mean(1))))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_are_pruned_trained_on_saved_and_loaded(
    kind: type[nn.RNNBase], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Words(kind)
    words, others = torch.randint(0, 20, (2, 3, 7))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner = dp.DecayPruner(
        model,
        optimizer,
        words,
        budget=dp.Budget(macs=0.5),
        schedule=dp.Schedule(stop=2, rounds=1, decay_steps=3),
    )
    while not pruner.finished:
        model(words).square().sum().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    expected = model.eval()(others)
    report = pruner.compact()
    assert model.rnn.hidden_size < 24
    assert report.macs_after <= 0.5 * report.macs_before
    torch.testing.assert_close(model(others), expected, rtol=0, atol=1e-6)
    model.train()(others).sum().backward()
    optimizer.step()
    dp.save(tmp_path / "model", model)
    again = dp.load(tmp_path / "model", Words(kind))
    assert torch.equal(again.eval()(others), model.eval()(others))
