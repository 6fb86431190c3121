"""Residual widths, and those before a response norm, of what people prune are cut exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from decayprune import reshape, structure
from decayprune.structures import trace
from reference.cut import cut, zeroed

TOKENS = torch.arange(5, 14)[None]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
}
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 32,
    "pad_token_id": 1,
}


def of_transformers(name: str) -> tuple[nn.Module, Any]:
    hub = pytest.importorskip("transformers", reason="models of transformers")
    inputs = {"input_ids": TOKENS}
    both = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]}
    if name == "bert":
        return hub.BertForSequenceClassification(hub.BertConfig(**SMALL)), inputs
    if name == "llama":
        return hub.LlamaForCausalLM(hub.LlamaConfig(**SMALL)), inputs
    if name == "gemma":
        config = hub.GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8)
        return hub.GemmaForCausalLM(config), inputs
    if name == "t5":
        config = hub.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=32)
        return hub.T5ForConditionalGeneration(config), both
    if name == "bart":
        return hub.BartForConditionalGeneration(hub.BartConfig(**SEQ2SEQ)), both
    config = hub.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4
    )
    return hub.SwinForImageClassification(config), {"pixel_values": torch.randn(1, 3, 16, 16)}


def of_timm(name: str) -> tuple[nn.Module, Any]:
    timm = pytest.importorskip("timm", reason="models of timm")
    model = timm.create_model(name, img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=3)
    return model, torch.randn(1, 3, 32, 32)


@torch.no_grad()
def logits(model: nn.Module, inputs: Any) -> torch.Tensor:
    return model(**inputs).logits if isinstance(inputs, dict) else model(inputs)


@pytest.mark.parametrize(
    ("make", "name", "width"),
    [
        (of_transformers, "bert", 16),
        (of_transformers, "llama", 16),
        (of_transformers, "gemma", 16),
        (of_transformers, "t5", 16),
        (of_transformers, "bart", 16),
        (of_transformers, "swin", 8),
        (of_timm, "vit_tiny_patch16_224", 24),
        (of_timm, "deit_tiny_patch16_224", 24),
    ],
)
def test_the_residual_width_is_cut(make, name: str, width: int) -> None:
    torch.manual_seed(0)
    model, inputs = make(name)
    model.eval().double()
    inputs = inputs.double() if isinstance(inputs, torch.Tensor) else inputs
    if isinstance(inputs, dict) and "pixel_values" in inputs:
        inputs = {"pixel_values": inputs["pixel_values"].double()}
    structures = trace(model, inputs)
    residual = max(structures.groups, key=lambda group: len(group.layers))
    assert residual.size == width
    assert len(residual.layers) >= 6
    gone = {residual.start, residual.start + 3}
    found = logits(cut(model, structures, gone), inputs)
    expected = logits(zeroed(model, structures, gone), inputs)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def of_conv_next(name: str) -> nn.Module:
    widths, depths = (8, 12, 16, 20), (1, 1, 1, 1)
    if name == "timm":
        timm = pytest.importorskip("timm", reason="models of timm")
        model = timm.create_model("convnextv2_atto", depths=depths, dims=widths, num_classes=3)
    else:
        hub = pytest.importorskip("transformers", reason="models of transformers")
        config = hub.ConvNextV2Config(hidden_sizes=widths, depths=depths, num_labels=3)
        model = hub.ConvNextV2ForImageClassification(config)
    for key, value in model.named_parameters():
        if ".grn." in key:  # it starts at 0, where it does nothing
            nn.init.normal_(value)
    return model.eval().double()


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_all_widths_of_a_conv_next_v2_are_cut(name: str) -> None:
    torch.manual_seed(0)
    model, images = of_conv_next(name), torch.randn(2, 3, 64, 64).double()
    structures = trace(model, images)
    inner = [group.size for group in structures.groups if len(group.layers) == 3]
    assert inner == [32, 48, 64, 80]
    gone = {group.start + place for group in structures.groups for place in (0, 3)}
    inputs = images if name == "timm" else {"pixel_values": images}
    small = cut(model, structures, gone)
    found, expected = logits(small, inputs), logits(zeroed(model, structures, gone), inputs)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    again = reshape(of_conv_next(name), structure(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(logits(again, inputs), found)
