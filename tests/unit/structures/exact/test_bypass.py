"""What stands where a module stood: it hands on, or gives zeros, in the same form."""

from __future__ import annotations

import torch
from torch import nn

from decayprune.structures.exact.bypass import Bypass, put_bypass
from residual_nets import FusedEncoder


def test_it_hands_on_the_first_tensor_or_zeros_of_its_shape() -> None:
    x, y = torch.randn(2, 3), torch.randn(4)
    assert Bypass("Linear", zero=False, items=0)(x, y) is x
    assert Bypass("Linear", zero=False, items=0)(None, hidden=x, mask=y) is x
    assert torch.equal(Bypass("Linear", zero=True, items=0)(x), torch.zeros(2, 3))


def test_of_a_tuple_the_rest_is_none() -> None:
    x = torch.randn(2, 3)
    first, *rest = Bypass("Attention", zero=True, items=3)(x)
    assert torch.equal(first, torch.zeros_like(x))
    assert rest == [None, None]


def test_it_takes_the_place_and_the_mode_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval()
    put_bypass(model, "0", zero=True, items=0)
    assert not model[0].training
    assert [name for name, _ in model.named_children()] == ["0", "1"]
    assert "Linear" in repr(model[0])
    assert not list(model.parameters())


def test_torchs_fused_encoder_does_not_reach_past_it() -> None:
    model, x = FusedEncoder().eval(), torch.randn(2, 5, 16)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    for name in ("self_attn", "linear1", "linear2"):
        put_bypass(
            model, f"encoder.layers.0.{name}", zero=name != "linear1", items=2 * (name[0] == "s")
        )
    first = model.encoder.layers[0]
    with torch.no_grad():
        expected = model.encoder.layers[1](first.norm2(first.norm1(x)), src_key_padding_mask=mask)
        found = model.encoder(x, src_key_padding_mask=mask)
    assert torch.allclose(found[~mask], expected[~mask], atol=1e-6)
