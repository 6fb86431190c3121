"""Which additions could do without an operand, and what is dead then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Lambda
from decayprune.structures.tracing.branches import residual_branches
from residual_nets import BRANCHES, residual_net


@pytest.mark.parametrize("name", sorted(BRANCHES))
def test_every_block_without_downsampling_is_found(name: str) -> None:
    found, refused = residual_branches(*residual_net(name))
    assert len(found) == BRANCHES[name]
    assert not refused


def test_a_block_of_a_resnet() -> None:
    branch = residual_branches(*residual_net("basic"))[0][0]
    assert branch.name == "layer1.0.bn2"
    assert branch.gate == ("layer1.0.bn2.weight", "layer1.0.bn2.bias")
    assert [tuple(item) for item in branch.bypassed] == [
        ("layer1.0.conv1", True, 0),
        ("layer1.0.bn1", False, 0),
        ("layer1.0.conv2", False, 0),
        ("layer1.0.bn2", True, 0),
    ]


def test_an_attention_is_gated_by_its_projection() -> None:
    branch = residual_branches(*residual_net("vit"))[0][0]
    home = "encoder.layers.encoder_layer_0"
    attention = f"{home}.self_attention"
    assert branch.gate == (f"{attention}.out_proj.weight", f"{attention}.out_proj.bias")
    assert [tuple(item) for item in branch.bypassed] == [
        (f"{home}.ln_1", True, 0),
        (attention, True, 2),
        (f"{home}.dropout", False, 0),
    ]


def layers(**parts: nn.Module) -> Callable[[Callable[..., Any]], nn.Module]:
    return lambda forward: Lambda(forward, head=nn.Linear(6, 2), **parts)


def linear(outputs: int = 6) -> nn.Module:
    return nn.Linear(6, outputs)


X = torch.randn(3, 6)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.head(x + m.a(x)), ["a"]),
        (lambda m, x: m.head(m.a(x) + x), ["a"]),
        (lambda m, x: m.head(m.b(F.gelu(m.a(x))) * 0.5 + x), ["b"]),
        # Another reader keeps what it reads: nothing but the branch's own layers may leave.
        (lambda m, x: (lambda y: m.head(x + m.b(y)) + y.mean())(m.a(x)), ["b"]),
        # Side by side, added to the stream one after the other, or to each other first.
        (lambda m, x: m.head(x + m.a(x) + m.b(x)), ["a", "b"]),
        (lambda m, x: m.head(x + (m.a(x) + m.b(x))), ["a"]),
        # Written over.
        (lambda m, x: m.head(m.a(x).relu_().add_(x)), ["a"]),
        # A gate of its own that zeros do not close, behind a layer that they do.
        (lambda m, x: m.head(x + m.a(x) * torch.sigmoid(m.b(x))), ["a"]),
        # No branches: neither operand comes from the other; nothing with weights.
        (lambda m, x: m.head(m.a(x) + m.b(x)), []),
        (lambda m, x: m.head(m.a(x) + m.a(x).pow(3)), []),
    ],
)
def test_what_is_a_branch(forward: Callable[..., Tensor], expected: list[str]) -> None:
    model = layers(a=linear(), b=linear())(forward)
    assert [branch.name for branch in residual_branches(model, X)[0]] == expected


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.head(x + torch.sigmoid(m.a(x))), "no layer is known at its end"),
        (lambda m, x: m.head(x + m.b(m.a(x) + x)), "holds other residual branches"),
        (lambda m, x: m.head(x + F.linear(x, m.a.weight) + m.a(x)), "are used elsewhere, too"),
        (lambda m, x: m.head(x + m.d(x)["y"]), "returns neither a tensor nor a tuple"),
    ],
)
def test_why_a_branch_stays(forward: Callable[..., Tensor], reason: str) -> None:
    inner = Lambda(lambda m, x: {"y": m.e(x)}, e=linear())
    _, refused = residual_branches(layers(a=linear(), b=linear(), d=inner)(forward), X)
    assert [r.reason for r in refused if reason in r.reason]


def test_the_model_is_only_looked_at() -> None:
    model, inputs = residual_net("encoder")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    residual_branches(model, inputs)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
