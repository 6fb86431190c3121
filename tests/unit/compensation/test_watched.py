"""What layers read, also where torch's attention hands their weights to a function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import decayprune as dp
from decayprune.compensation.calibration import calibrate
from decayprune.compensation.consumers import Consumer, consumers
from decayprune.compensation.sensitivity import sensitivity
from decayprune.compensation.watched import watched
from decayprune.structures import trace

WIDTH, HEADS = 8, 4


class Around(nn.Module):
    """An attention between two layers; its two ways are one function of the same weights."""

    def __init__(self, *, by_hand: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=bias, batch_first=True)
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.by_hand:
            return self.after(self.attention.out_proj(self.mixed(x)))
        return self.after(self.attention(x, x, x, need_weights=False)[0])

    def mixed(self, x: Tensor) -> Tensor:
        """What the last layer of the attention reads, ``(batch, places, WIDTH)``."""
        of = self.attention
        q, k, v = F.linear(x, of.in_proj_weight, of.in_proj_bias).chunk(3, -1)
        heads = [t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v)]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def around(**options: bool) -> Around:
    torch.manual_seed(4)
    model = Around(**options).double().eval()
    if model.attention.in_proj_bias is not None:
        nn.init.normal_(model.attention.in_proj_bias)
        nn.init.normal_(model.attention.out_proj.bias)
    return model


DATA = [torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(i)).double() for i in range(2)]


@pytest.mark.parametrize("grad", [True, False])  # without, torch has a function for all of it
@pytest.mark.parametrize("bias", [True, False])
def test_what_the_last_layer_of_an_attention_reads(bias: bool, grad: bool) -> None:
    model = around(bias=bias)
    readers = consumers(model, trace(model, DATA[0]))
    assert "attention.out_proj" in [reader.name for reader in readers]
    read: dict[str, Tensor] = {}

    def note(reader: Consumer, x: Tensor) -> None:
        read[reader.name] = x

    state = torch.random.get_rng_state()
    with torch.set_grad_enabled(grad):
        expected = model(DATA[0])
        with watched(model, readers, note):
            torch.testing.assert_close(model(DATA[0]), expected)
    torch.testing.assert_close(read["attention.out_proj"], model.mixed(model.before(DATA[0])))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "forward" not in vars(model.attention)
    assert isinstance(model.attention.out_proj, nn.Linear)


def test_after_an_error_the_attention_is_as_it_was() -> None:
    model = around()
    readers = consumers(model, trace(model, DATA[0]))
    with pytest.raises(AssertionError), watched(model, readers, lambda reader, x: None):
        model.attention(DATA[0], DATA[0], DATA[0])  # 3 wide instead of 8
    assert isinstance(model.attention.out_proj, nn.Linear)
    assert "forward" not in vars(model.attention)


def test_what_is_returned_is_read_instead() -> None:
    model = around()
    readers = consumers(model, trace(model, DATA[0]))
    only = [reader for reader in readers if reader.name == "attention.out_proj"]
    with watched(model, only, lambda reader, x: torch.zeros_like(x)):
        found = model(DATA[0])
    torch.testing.assert_close(found, model.after(model.attention.out_proj.bias).expand(5, 6, 2))


def test_heads_are_felt_as_if_the_attention_were_written_out() -> None:
    usual, by_hand = around(), around(by_hand=True)
    structures = trace(usual, DATA[0])
    felt = [
        sensitivity(model, structures, DATA, calibrate(model, structures, DATA))
        for model in (usual, by_hand)
    ]
    torch.testing.assert_close(*felt)
    assert int((felt[0] > 0).sum()) == HEADS + WIDTH  # the inputs of an attention are not looked at


def test_heads_that_others_can_replace_are_taken_over() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, WIDTH), nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)
    ).eval()
    attention = model[1].self_attn
    with torch.no_grad():  # the second half of the heads is the first half, twice in its values
        for part in (attention.in_proj_weight, attention.in_proj_bias):
            for of in part.chunk(3):
                of[WIDTH // 2 :] = of[: WIDTH // 2]
            part[-WIDTH // 2 :] *= 2
    data = [torch.randn(5, 6, 3) for _ in range(3)]
    whole = model(data[0]).detach()
    heads = ["0", "1.linear1"]
    dp.prune_one_shot(
        model, data[0], budget=dp.Budget(macs=0.75), calibrate=data, ignored_layers=heads, floor=0.5
    )
    assert attention.num_heads == HEADS // 2
    torch.testing.assert_close(model(data[0]), whole, rtol=0.02, atol=0.02)
