"""Decoder families as data: where a model's blocks and linears are, and which share an input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmopt.errors import RequestError
from llmopt.specs.base import shortened
from llmopt.specs.family import ExpertsSpec, FamilySpec, Naming

__all__ = ["FAMILIES", "ExpertsSpec", "FamilySpec", "Naming", "family_of"]

_QKV = ("qkv_proj", ("q_proj", "k_proj", "v_proj"))
_GATE_UP = ("gate_up_proj", ("gate_proj", "up_proj"))
_LLAMA = FamilySpec(
    id="llama",
    fused=(_QKV, _GATE_UP),
    base="model",
    blocks="layers",
    embedding="embed_tokens",
    final_norm="norm",
    inlets=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)
_GEMMA3_TEXT = replace(_LLAMA, id="gemma3_text", norm_gain_offset=1.0)

_FAMILIES = (
    _LLAMA,
    replace(_LLAMA, id="mistral"),
    replace(_LLAMA, id="qwen2"),
    replace(_LLAMA, id="qwen3"),
    # sdpa leaves out the soft cap on gemma2's attention scores
    replace(_LLAMA, id="gemma2", norm_gain_offset=1.0, attention="eager"),
    _GEMMA3_TEXT,
    replace(
        _GEMMA3_TEXT,
        id="gemma3",
        text_config="text_config",
        stored_as=(
            ("language_model.model", "language_model.lm_head"),
            ("model.language_model", "lm_head"),
        ),
    ),
    replace(
        _LLAMA,
        id="phi3",
        inlets=(
            ("self_attn.qkv_proj",),
            ("self_attn.o_proj",),
            ("mlp.gate_up_proj",),
            ("mlp.down_proj",),
        ),
    ),
    replace(
        _LLAMA,
        id="mixtral",
        renamed=(("mlp", "block_sparse_moe"),),
        experts=ExpertsSpec(gate="w1", up="w3", down="w2"),
    ),
    replace(
        _LLAMA,
        id="qwen2_moe",
        experts=ExpertsSpec(
            routers=("gate", "shared_expert_gate"),
            shared=(
                (("shared_expert.gate_proj", "shared_expert.up_proj"),),
                (("shared_expert.down_proj",),),
            ),
        ),
    ),
    replace(_LLAMA, id="qwen3_moe", experts=ExpertsSpec()),
    FamilySpec(
        id="gpt2",
        base="transformer",
        blocks="h",
        embedding="wte",
        final_norm="ln_f",
        inlets=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        conv1d=True,
    ),
    FamilySpec(
        id="gpt_neox",
        base="gpt_neox",
        blocks="layers",
        embedding="embed_in",
        final_norm="final_layer_norm",
        stored_as=(("gpt_neox", "embed_out"), ("gpt_neox", "lm_head")),
        inlets=(
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
    ),
    FamilySpec(
        id="opt",
        fused=(_QKV,),
        base="model.decoder",
        blocks="layers",
        embedding="embed_tokens",
        final_norm="final_layer_norm",
        inlets=(
            ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
    ),
    FamilySpec(
        id="falcon",
        base="transformer",
        blocks="h",
        embedding="word_embeddings",
        final_norm="ln_f",
        inlets=(
            ("self_attention.query_key_value",),
            ("self_attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
    ),
)
FAMILIES: dict[str, FamilySpec] = {family.id: family for family in _FAMILIES}


def family_of(config: Mapping[str, Any]) -> FamilySpec:
    """The family that a config.json belongs to, or RequestError with those that are supported.

    A near name is no hint: another model_type makes no other model of it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise RequestError("config.json does not say its model_type")
    if model_type not in FAMILIES:
        raise RequestError(
            f"models of the type {shortened(model_type)!r} are not supported",
            hint=f"model types that are: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]
