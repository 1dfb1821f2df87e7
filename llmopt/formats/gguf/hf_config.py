"""The config.json of a model that came as a GGUF file. No torch.

It says what transformers needs to compute the same: every family's own keys, those of rope in the
way that all versions of transformers read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import GgufFile
from llmopt.formats.gguf.families import GGUF_FAMILIES
from llmopt.formats.gguf.hf_rope import rope_config, shortest

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


def hf_config(gguf: GgufFile) -> dict[str, Any]:
    """config.json; RequestError where the metadata lacks what the architecture needs."""
    facts = _Facts(gguf)
    family = _family(facts)
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": facts.shape("token_embd.weight")[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "dtype": _DTYPES.get(gguf.tensors["token_embd.weight"].type_id, "float32"),
        **_token_ids(gguf.metadata),
    }
    if family == "gpt2":
        return config | _gpt2(facts)
    config |= {
        "hidden_size": facts.number("embedding_length"),
        "num_hidden_layers": facts.number("block_count"),
        "num_attention_heads": facts.number("attention.head_count"),
        "max_position_embeddings": facts.number("context_length"),
        **rope_config(gguf, facts.head_dim),
    }
    special = {"falcon": _falcon, "gpt_neox": _gpt_neox}.get(family, _gated)
    return config | special(facts)


class _Facts:
    """The metadata of the architecture, by keys without its name."""

    def __init__(self, gguf: GgufFile) -> None:
        self.gguf = gguf

    def get(self, key: str) -> Any:
        return self.gguf.metadata.get(f"{self.gguf.architecture}.{key}")

    def number(self, key: str) -> int:
        """A whole number above 0; the one of all blocks where the file lists them."""
        value = self.get(key)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if type(value) is not int or value < 1:
            raise RequestError(
                f"{self.gguf.paths[0].name} says {self.gguf.architecture}.{key} = {value!r}"[:200]
            )
        return value

    def real(self, key: str) -> float:
        """A float32 in the digits that a person would write."""
        value = self.get(key)
        if not isinstance(value, float):
            raise RequestError(f"{self.gguf.paths[0].name} does not say {key}")
        return shortest(value)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.gguf.tensors:
            raise RequestError(f"{self.gguf.paths[0].name} has no tensor {name}")
        return self.gguf.tensors[name].shape

    def has(self, stem: str) -> bool:
        """Whether some block has this tensor."""
        pattern = re.compile(rf"blk\.\d+\.{re.escape(stem)}")
        return any(pattern.fullmatch(name) for name in self.gguf.tensors)

    @property
    def head_dim(self) -> int:
        if self.get("attention.key_length") is not None:
            return self.number("attention.key_length")
        return self.number("embedding_length") // self.number("attention.head_count")

    @property
    def kv_heads(self) -> int:
        key = "attention.head_count_kv"
        return self.number(key if self.get(key) is not None else "attention.head_count")


def _family(facts: _Facts) -> str:
    """The family, by the architecture; llama stands for Mixtral too, and for Mistral."""
    architecture = facts.gguf.architecture
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
    return {
        f"{ours}_token_id": metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in names.items()
    }


def _gated(facts: _Facts) -> dict[str, Any]:
    """Llama and what came of it."""
    family = _family(facts)
    config: dict[str, Any] = {
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
        config |= {"sliding_window": facts.get("attention.sliding_window") or None}
    if facts.get("expert_count"):
        config |= _experts(facts, family)
    return config


def _experts(facts: _Facts, family: str) -> dict[str, Any]:
    count, used = facts.number("expert_count"), facts.number("expert_used_count")
    inner = facts.shape("blk.0.ffn_down_exps.weight")[-1]
    if family == "mixtral":
        return {
            "num_local_experts": count,
            "num_experts_per_tok": used,
            "intermediate_size": inner,
            "sliding_window": None,
        }
    found = {
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": inner,
        "norm_topk_prob": family == "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    if family == "qwen2_moe":
        shared = facts.shape("blk.0.ffn_down_shexp.weight")[-1]
        found["shared_expert_intermediate_size"] = shared
    return found


def _gemma(facts: _Facts) -> dict[str, Any]:
    layers, second = facts.number("block_count"), facts.gguf.architecture == "gemma2"
    pattern = facts.get("attention.sliding_window_pattern") or (2 if second else 6)
    if isinstance(pattern, int):
        pattern = [(index + 1) % pattern != 0 for index in range(layers)]
    window = facts.get("attention.sliding_window")
    kinds = {True: "sliding_attention", False: "full_attention"}
    # llama.cpp goes by the number of blocks of the 27B models
    large = layers == (46 if second else 62)
    width = facts.number("embedding_length") // facts.number("attention.head_count")
    found = {
        "layer_types": [kinds[bool(local and window)] for local in pattern[:layers]],
        "sliding_window": window or 4096,
        "query_pre_attn_scalar": width if large else facts.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": facts.get("final_logit_softcapping"),
        "attn_logit_softcapping": facts.get("attn_logit_softcapping"),
    }
    if second:  # what llama.cpp takes where the file does not say
        found["final_logit_softcapping"] = found["final_logit_softcapping"] or 30.0
        found["attn_logit_softcapping"] = found["attn_logit_softcapping"] or 50.0
    return found


def _gpt2(facts: _Facts) -> dict[str, Any]:
    return {
        "n_embd": facts.number("embedding_length"),
        "n_layer": facts.number("block_count"),
        "n_head": facts.number("attention.head_count"),
        "n_positions": facts.number("context_length"),
        "n_inner": facts.number("feed_forward_length"),
        "layer_norm_epsilon": facts.real("attention.layer_norm_epsilon"),
    }


def _gpt_neox(facts: _Facts) -> dict[str, Any]:
    return {
        "intermediate_size": facts.number("feed_forward_length"),
        "layer_norm_eps": facts.real("attention.layer_norm_epsilon"),
        "use_parallel_residual": bool(facts.get("use_parallel_residual")),
        "attention_bias": facts.has("attn_qkv.bias"),
        "rotary_pct": facts.number("rope.dimension_count") / facts.head_dim,
    }


def _falcon(facts: _Facts) -> dict[str, Any]:
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
        "ffn_hidden_size": facts.shape("blk.0.ffn_up.weight")[0],
        "layer_norm_epsilon": facts.real("attention.layer_norm_epsilon"),
    }
