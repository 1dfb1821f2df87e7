"""The config.json of a model that came as a GGUF file. No torch.

It says what transformers needs to compute the same: every family's own keys, those of rope in the
way that all versions of transformers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.gguf.container import GgufFile
from llmopt.formats.gguf.facts import Facts
from llmopt.formats.gguf.families import GGUF_FAMILIES
from llmopt.formats.gguf.hf_rope import rope_config

#: a family's class in transformers
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
}
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def hf_config(gguf: GgufFile) -> JsonObject:
    """config.json; RequestError where the metadata lacks what the architecture needs."""
    facts = Facts(gguf)
    family = _family(facts)
    config: JsonObject = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": facts.tensor("token_embd.weight").shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": _DTYPES.get(facts.tensor("token_embd.weight").type_id, "float32"),
        **_token_ids(gguf.metadata),
    }
    if family == "gpt2":
        return config | _gpt2(facts)
    config |= {
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.gguf.block_count,
        "num_attention_heads": facts.number("attention.head_count"),
        "max_position_embeddings": facts.number("context_length"),
        **rope_config(facts),
    }
    special = {"falcon": _falcon, "gpt_neox": _gpt_neox}.get(family, _gated)
    return config | special(facts)


def _family(facts: Facts) -> str:
    """The family, by the architecture; llama stands for Mixtral too, and for Mistral."""
    architecture = facts.architecture
    if architecture == "llama":
        return "mixtral" if facts.get("expert_count") else "llama"
    for family, spec in GGUF_FAMILIES.items():
        if spec.architecture == architecture and family in _CLASSES:
            return family
    raise RequestError(
        f"{facts.gguf.paths[0].name} holds a {architecture} model, which is not supported"
    )


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, int | None]:
    """None, too, where there is none: what transformers takes else may be beyond the vocabulary."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    given = {
        ours: metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in names.items()
    }
    return {
        f"{ours}_token_id": value if type(value) is int else None for ours, value in given.items()
    }


def _gated(facts: Facts) -> JsonObject:
    """Llama and what came of it."""
    family = _family(facts)
    config: JsonObject = {
        "num_key_value_heads": facts.kv_heads,
        "rms_norm_eps": facts.real("attention.layer_norm_rms_epsilon"),
    }
    if facts.get("feed_forward_length") is not None:
        config["intermediate_size"] = facts.number("feed_forward_length")
    if family not in ("qwen2", "qwen2_moe", "phi3"):
        config["head_dim"] = facts.head_dim
    if family in ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"):
        config["attention_bias"] = facts.has("attn_q.bias")
    if family == "llama":
        config["mlp_bias"] = facts.has("ffn_up.bias")
    if family.startswith("gemma"):
        config |= _gemma(facts)
    if family == "phi3":
        window = facts.get("attention.sliding_window")
        config["sliding_window"] = facts.number("attention.sliding_window") if window else None
    if facts.get("expert_count"):
        config |= _experts(facts, family)
    return config


def _experts(facts: Facts, family: str) -> JsonObject:
    count, used = facts.number("expert_count"), facts.number("expert_used_count")
    inner = facts.tensor("blk.0.ffn_down_exps.weight").shape[-1]
    if family == "mixtral":
        return {
            "num_local_experts": count,
            "num_experts_per_tok": used,
            "intermediate_size": inner,
            "sliding_window": None,
        }
    found: JsonObject = {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": inner,
        "norm_topk_prob": family == "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if family == "qwen2_moe":
        shared = facts.tensor("blk.0.ffn_down_shexp.weight").shape[-1]
        found["shared_expert_intermediate_size"] = shared
    return found


def _gemma(facts: Facts) -> JsonObject:
    layers, second = facts.gguf.block_count, facts.architecture == "gemma2"
    pattern = facts.get("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        every = facts.number("attention.sliding_window_pattern", 2 if second else 6)
        pattern = [(index + 1) % every != 0 for index in range(layers)]
    if len(pattern) < layers or not all(isinstance(local, int) for local in pattern):
        raise facts.wrong("attention.sliding_window_pattern", pattern)
    window = facts.get("attention.sliding_window") and facts.number("attention.sliding_window")
    kinds = {True: "sliding_attention", False: "full_attention"}
    # llama.cpp goes by the number of blocks of the 27B models
    large = layers == (46 if second else 62)
    width = facts.number("embedding_length") // facts.number("attention.head_count")
    caps = {
        key: facts.real(key, 0.0) or None
        for key in ("final_logit_softcapping", "attn_logit_softcapping")
    }
    if second:  # what llama.cpp takes where the file does not say
        caps = {
            key: value or usual
            for (key, value), usual in zip(caps.items(), (30.0, 50.0), strict=True)
        }
    return {
        "layer_types": [kinds[bool(local and window)] for local in pattern[:layers]],
        "sliding_window": window or 4096,
        "query_pre_attn_scalar": width if large else facts.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        **caps,
    }


def _gpt2(facts: Facts) -> JsonObject:
    return {
        "n_embd": facts.number("embedding_length"),
        "n_layer": facts.gguf.block_count,
        "n_head": facts.number("attention.head_count"),
        "n_positions": facts.number("context_length"),
        "n_inner": facts.number("feed_forward_length"),
        "layer_norm_epsilon": facts.real("attention.layer_norm_epsilon"),
    }


def _gpt_neox(facts: Facts) -> JsonObject:
    return {
        "intermediate_size": facts.number("feed_forward_length"),
        "layer_norm_eps": facts.real("attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(facts.get("use_parallel_residual")),
        "attention_bias": facts.has("attn_qkv.bias"),
        "rotary_pct": facts.rotary_dim / facts.head_dim,
    }


def _falcon(facts: Facts) -> JsonObject:
    heads, shared = facts.number("attention.head_count"), facts.kv_heads
    two_norms = facts.has("attn_norm_2.weight")
    return {
        "num_kv_heads": shared,
        "multi_query": shared == 1,
        "new_decoder_architecture": two_norms or shared not in (1, heads),
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": False,
        "ffn_hidden_size": facts.tensor("blk.0.ffn_up.weight").shape[0],
        "layer_norm_epsilon": facts.real("attention.layer_norm_epsilon"),
    }
