"""Models of transformers: encoders, causal LMs as they come, seq2seq, vision, speech, experts ...

Each entry: the class of the model, that of its configuration, what differs from :data:`SMALL`, and
what inputs it takes. Causal LMs keep their defaults, the key/value cache in the output included.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from .measure import Draw, Make

SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 10,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
WIDE = {
    "d_model": 64,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 160,
    "d_kv": 16,
    "dropout_rate": 0.0,
}
BART = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
    "max_position_embeddings": 64,
}
SPEECH = {
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "feat_proj_dropout": 0.0,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "activation_dropout": 0.0,
}

TEXT = {  # name: (class, configuration, what differs)
    # encoders
    "bert": ("BertForSequenceClassification", "BertConfig", {}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 160, "seq_classif_dropout": 0.0},
    ),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {"embedding_size": 32}),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {"embedding_size": 32}),
    "deberta_v2": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", {}),
    "modernbert": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {"num_hidden_layers": 4},
    ),
    "layoutlm": ("LayoutLMForSequenceClassification", "LayoutLMConfig", {}),
    "bert_mlm": ("BertForMaskedLM", "BertConfig", {}),
    # causal language models
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "gptj": (
        "GPTJForCausalLM",
        "GPTJConfig",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 160, "word_embed_proj_dim": 64}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 16}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GROUPED | {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 16}),
    "phi": ("PhiForCausalLM", "PhiConfig", GROUPED),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    # experts
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        GROUPED | EXPERTS | {"shared_expert_intermediate_size": 96},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", GROUPED | EXPERTS | {"head_dim": 16}),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", GROUPED | EXPERTS),
    # state space
    "mamba": ("MambaForCausalLM", "MambaConfig", {"state_size": 8}),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {"state_size": 16, "head_dim": 16, "num_heads": 8, "n_groups": 1, "chunk_size": 8},
    ),
}

SEQUENCES = {
    "t5": ("T5ForConditionalGeneration", "T5Config", WIDE),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", WIDE),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "marian": ("MarianMTModel", "MarianConfig", BART | {"decoder_start_token_id": 0}),
    "pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", BART),
}

IMAGES = {
    "vit": ("ViTForImageClassification", "ViTConfig", {"image_size": 64, "patch_size": 16}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {"image_size": 64, "patch_size": 16}),
    "beit": (
        "BeitForImageClassification",
        "BeitConfig",
        {"image_size": 64, "patch_size": 16, "use_relative_position_bias": True},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 64,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        {"num_stages": 4, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    ),
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {"image_size": 56, "patch_size": 14},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 32,
            "classifier_dropout_prob": 0.0,
        },
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96],
        },
    ),
}

SOUNDS = {
    "wav2vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH),
    "hubert": ("HubertForCTC", "HubertConfig", SPEECH),
}

TYPED = {
    "num_labels",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
}  # every configuration has them


def _config(kind: str, changes: dict[str, Any]) -> Any:
    """A small configuration: of :data:`SMALL` what it knows."""
    import transformers

    made = getattr(transformers, kind)
    known = made()
    mapped = getattr(made, "attribute_map", {}) or {}
    base = {k: v for k, v in SMALL.items() if k in TYPED or hasattr(known, k) or k in mapped}
    base = {k: v for k, v in base.items() if mapped.get(k) not in changes}
    drops = {k: 0.0 for k in vars(known) if "dropout" in k or k in ("drop_path_rate", "layerdrop")}
    drops = {k: v for k, v in drops.items() if isinstance(getattr(known, k), (int, float))}
    return made(**(base | drops | changes))


def _model(kind: str, config: str, changes: dict[str, Any]) -> nn.Module:
    import transformers

    model: nn.Module = getattr(transformers, kind)(_config(config, changes))
    return model.float()


def _text(kind: str, config: str, changes: dict[str, Any]) -> tuple[nn.Module, Draw]:
    return _model(kind, config, changes), lambda: {"input_ids": torch.randint(3, 200, (1, 24))}


def _sequence(kind: str, config: str, changes: dict[str, Any]) -> tuple[nn.Module, Draw]:
    def draw() -> dict[str, Any]:
        source, target = torch.randint(3, 200, (1, 24)), torch.randint(3, 200, (1, 12))
        return {"input_ids": source, "decoder_input_ids": target}

    return _model(kind, config, changes), draw


def _image(kind: str, config: str, changes: dict[str, Any]) -> tuple[nn.Module, Draw]:
    size = changes.get("image_size", 64)
    model = _model(kind, config, changes)
    return model, lambda: {"pixel_values": torch.randn(1, 3, size, size)}


def _sound(kind: str, config: str, changes: dict[str, Any]) -> tuple[nn.Module, Draw]:
    return _model(kind, config, changes), lambda: {"input_values": torch.randn(1, 1600)}


def _whisper() -> tuple[nn.Module, Draw]:
    changes = BART | {"num_mel_bins": 16, "max_source_positions": 40, "max_target_positions": 40}
    changes |= {"decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None}
    model = _model("WhisperForConditionalGeneration", "WhisperConfig", changes)

    def draw() -> dict[str, Any]:
        sound, words = torch.randn(1, 16, 80), torch.randint(3, 200, (1, 12))
        return {"input_features": sound, "decoder_input_ids": words}

    return model, draw


def _clip() -> tuple[nn.Module, Draw]:
    import transformers as hf

    text = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size")}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4}
    images = {"hidden_size": 64, "intermediate_size": 160, "image_size": 64, "patch_size": 16}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = hf.CLIPConfig(
        text_config=text | layers | ends, vision_config=images | layers, projection_dim=32
    )

    def draw() -> dict[str, Any]:
        words, image = torch.randint(3, 200, (1, 12)), torch.randn(1, 3, 64, 64)
        return {"input_ids": words, "pixel_values": image}

    return hf.CLIPModel(config), draw


def _ast() -> tuple[nn.Module, Draw]:
    changes = {"max_length": 64, "num_mel_bins": 32}
    model = _model("ASTForAudioClassification", "ASTConfig", changes)
    return model, lambda: {"input_values": torch.randn(1, 64, 32)}


def _all() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for make, table in ((_text, TEXT), (_sequence, SEQUENCES), (_image, IMAGES), (_sound, SOUNDS)):
        for name, (kind, config, changes) in table.items():
            found[name] = partial(make, kind, config, changes)
    return found | {"whisper": _whisper, "clip": _clip, "ast": _ast}


MODELS = _all()
