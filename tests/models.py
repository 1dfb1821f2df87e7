"""Tiny random models of every family, for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmopt.specs.families import FAMILIES

#: widths are multiples of 32, what the packed layouts need; heads differ from key-value heads
_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "tie_word_embeddings": True, "attention_bias": True},
    "mistral": {**_DECODER, "sliding_window": 4},
    "qwen2": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "qwen3": _DECODER,
    "gemma2": {**_DECODER, **_SLIDING, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0},
    "gemma3_text": {**_DECODER, **_SLIDING, "query_pre_attn_scalar": 16},
    "phi3": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 96,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "do_layer_norm_before": False,
    },
    "falcon": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "alibi": True,
    },
}


def build(family: str, seed: int = 0, **settings: Any) -> torch.nn.Module:
    """A model with random weights large enough that every part of it matters."""
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILY_SETTINGS[family], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=FAMILIES[family].attention
        )
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.3 if parameter.ndim > 1 else 0.1
                parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


def save(folder: Path, family: str = "llama", seed: int = 0, **settings: Any) -> torch.nn.Module:
    """Write such a model as a Hugging Face directory (no tokenizer), and return it."""
    model = build(family, seed, **settings)
    model.save_pretrained(folder)
    return model


def tokens(
    sequences: int = 5, length: int = 12, vocabulary: int = 96, seed: int = 0
) -> torch.Tensor:
    """Random int64 [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (sequences, length), generator=generator)
