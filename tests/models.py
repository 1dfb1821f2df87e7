"""Tiny random models of every family, for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from llmopt.formats.experts import unfuse
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
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_COMMON = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "tie_word_embeddings": True, "attention_bias": True},
    "mistral": {**_DECODER, "sliding_window": 4},
    "qwen2": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "qwen3": _DECODER,
    "gemma2": {**_DECODER, **_SLIDING, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0},
    "gemma3_text": {**_DECODER, **_SLIDING, "query_pre_attn_scalar": 16},
    "phi3": {key: value for key, value in _DECODER.items() if key != "head_dim"},
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **{key: value for key, value in _DECODER.items() if key != "head_dim"},
        **_EXPERTS,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {**_DECODER, **_EXPERTS, "norm_topk_prob": True},
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


def with_plain_experts(model: torch.nn.Module) -> torch.nn.Module:
    """The model with a linear for each expert's weight, as ours are; changed in place."""
    family = FAMILIES[model.config.model_type]
    fused = {path: part for path, part in model.named_modules() if path.endswith(".experts")}
    unfuse(model, family)
    for path, part in fused.items():
        for index, expert in enumerate(model.get_submodule(path).children()):
            gate, up = part.gate_up_proj[index].detach().chunk(2)
            down = part.down_proj[index].detach()
            for name, weight in zip(
                (family.experts.gate, family.experts.up, family.experts.down),
                (gate, up, down),
                strict=True,
            ):
                expert.get_submodule(name).weight = torch.nn.Parameter(weight.clone())
    return model


def save(folder: Path, family: str = "llama", seed: int = 0, **settings: Any) -> torch.nn.Module:
    """Write such a model as a Hugging Face directory (no tokenizer), and return it."""
    model = build(family, seed, **settings)
    model.save_pretrained(folder)
    return model


def save_gemma3_with_a_tower(folder: Path) -> None:
    """Write a Gemma 3 that sees pictures, in place of whatever weights are there."""
    text = FAMILY_SETTINGS["gemma3_text"]
    config = Gemma3Config(
        text_config={
            **_COMMON, **text, "intermediate_size": 128, "tie_word_embeddings": True,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4, image_token_index=90, boi_token_index=91, eoi_token_index=92,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma3ForConditionalGeneration(config)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    model.save_pretrained(folder)


def save_with_tokenizer(folder: Path, family: str = "llama", **settings: Any) -> torch.nn.Module:
    """... and a tokenizer of one token a character."""
    model = save(folder, family, **settings)
    vocabulary = {chr(code): code - 31 for code in range(32, 127)} | {"\n": 0}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def save_with_bytes(folder: Path, family: str = "llama", **settings: Any) -> torch.nn.Module:
    """... and a tokenizer of one token a byte, with the pre-tokenizer of GPT-2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = save(folder, family, **{"vocab_size": len(alphabet), **settings})
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def tokens(
    sequences: int = 5, length: int = 12, vocabulary: int = 96, seed: int = 0
) -> torch.Tensor:
    """Random int64 [sequences, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (sequences, length), generator=generator)
