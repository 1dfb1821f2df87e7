"""The metadata that llama.cpp needs of a model, tokenizer aside. No torch.

Keys and their meaning: llama.cpp's `LLM_KV_*` and what each architecture reads of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.gguf.families import gguf_family
from llmopt.formats.gguf.rope import head_dim, number, parameters, rotary_dim, yarn_attention
from llmopt.formats.transformers_config import using_config
from llmopt.pretrained import model_config
from llmopt.specs.families import FamilySpec

#: of the block layouts; it has been 2 since 2023
QUANTIZATION_VERSION = 2
#: what llama.cpp always takes for the settings of YaRN: of the architectures written here, none
#: reads the keys that GGUF has for some of these
_YARN_ALWAYS = {"beta_fast": 32, "beta_slow": 1, "extrapolation_factor": 1, "truncate": True}


def model_metadata(
    family: FamilySpec, config: Mapping[str, Any], name: str, file_type: int
) -> Metadata:
    """`general.*` and the hyper-parameters of the architecture, in the order of the file.

    config: the whole config.json. name: general.name. file_type: llama.cpp's number of the mix.
    RequestError where the config lacks what llama.cpp needs, or says what it cannot express.
    """
    spec = gguf_family(family.id)
    text = completed(family, config)
    values = {
        "context_length": _context(text),
        "block_count": text["num_hidden_layers"],
        "embedding_length": text["hidden_size"],
        "feed_forward_length": _inner(text),
        "attention.head_count": text["num_attention_heads"],
        **_attention(spec.architecture, text),
        **_experts(text),
        **({} if spec.architecture == "gpt2" else _rope(spec.architecture, text)),
        "vocab_size": text["vocab_size"],
    }
    if spec.architecture == "gptneox":
        values["use_parallel_residual"] = bool(text.get("use_parallel_residual", True))
    if spec.architecture == "falcon":
        values["tensor_data_layout"] = "jploski"
    return {
        "general.architecture": spec.architecture,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": file_type,
    } | {f"{spec.architecture}.{key}": value for key, value in values.items() if value is not None}


def completed(family: FamilySpec, config: Mapping[str, Any]) -> Metadata:
    """The text model's config with what config.json leaves out, under the usual names too.

    RequestError where transformers cannot read it.
    """
    with using_config():
        settings = model_config(family.language_config(config))
    full: Metadata = settings.to_dict()
    usual = {new: full[old] for new, old in settings.attribute_map.items() if old in full}
    return {**full, **usual}


def _context(text: Mapping[str, Any]) -> int:
    """The most positions for which llama.cpp computes what the model does.

    Where some block sees a window only, and llama.cpp has no windows for the architecture, that is
    the window: up to there it makes no difference.
    """
    length = int(text["max_position_embeddings"])
    window = text.get("sliding_window")
    kinds = text.get("layer_types")
    used = text.get("use_sliding_window", True) and (kinds is None or "sliding_attention" in kinds)
    if window and used and not text["model_type"].startswith("gemma"):
        return min(length, int(window))
    return length


def _inner(text: Mapping[str, Any]) -> int:
    keys = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
    found = next((text[key] for key in keys if text.get(key)), None)
    return int(found) if found is not None else 4 * int(text["hidden_size"])


def _attention(arch: str, text: Mapping[str, Any]) -> Metadata:
    """Heads, norms, windows and caps."""
    rms = text.get("rms_norm_eps")
    norm = text.get("layer_norm_epsilon", text.get("layer_norm_eps"))
    heads = text["num_attention_heads"]
    shared = text.get("num_key_value_heads") or heads
    if arch == "falcon":
        shared = text.get("num_kv_heads") or heads
        if not text.get("new_decoder_architecture"):
            shared = 1 if text.get("multi_query", True) else heads
    found = {
        "attention.head_count_kv": shared,
        "attention.layer_norm_rms_epsilon": rms and float(rms),
        "attention.layer_norm_epsilon": None if rms else float(norm),
    }
    if text.get("head_dim"):
        found |= {"attention.key_length": head_dim(text), "attention.value_length": head_dim(text)}
    if arch in ("gemma2", "gemma3"):
        found |= _gemma(arch, text)
    return found


def _gemma(arch: str, text: Mapping[str, Any]) -> Metadata:
    """What only Gemma has; RequestError where llama.cpp scales attention otherwise."""
    heads, layers = int(text["num_attention_heads"]), int(text["num_hidden_layers"])
    # llama.cpp goes by the number of blocks of the 27B models
    large = layers == (46 if arch == "gemma2" else 62)
    scale = int(text["hidden_size"]) // heads if large else head_dim(text)
    asked = text.get("query_pre_attn_scalar") or head_dim(text)
    if not math.isclose(asked, scale):
        raise RequestError(
            f"llama.cpp divides the attention scores of this model by the root of {scale}, "
            f"not of query_pre_attn_scalar = {asked}"
        )
    caps = {
        "attn_logit_softcapping": text.get("attn_logit_softcapping"),
        "final_logit_softcapping": text.get("final_logit_softcapping"),
    }
    if arch == "gemma2" and not all(caps.values()):
        raise RequestError("llama.cpp cannot run a gemma2 model without caps on its logits")
    if arch == "gemma3" and caps["attn_logit_softcapping"]:
        raise RequestError("llama.cpp cannot run a gemma3 model with a cap on attention scores")
    kinds = text.get("layer_types") or []
    return {key: float(value) for key, value in caps.items() if value} | {
        "attention.sliding_window": text.get("sliding_window"),
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds],
    }


def _experts(text: Mapping[str, Any]) -> Metadata:
    count = text.get("num_local_experts") or text.get("num_experts")
    if not count:
        return {}
    return {
        "expert_count": count,
        "expert_used_count": text["num_experts_per_tok"],
        "expert_feed_forward_length": text.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": text.get("shared_expert_intermediate_size"),
    }


def _rope(arch: str, text: Mapping[str, Any]) -> Metadata:
    rope = parameters(text)
    kind = rope["rope_type"]
    found: Metadata = {
        "rope.dimension_count": rotary_dim(text),
        "rope.freq_base": number(rope, "rope_theta", 10000.0),
    }
    if arch == "gemma3":
        local = parameters(text, "sliding_attention")
        found["rope.freq_base_swa"] = number(local, "rope_theta", 10000.0)
    if kind == "linear":
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": number(rope, "factor")}
    elif kind == "yarn":
        found |= _yarn(arch, rope, text)
    elif kind == "longrope":
        found |= _longrope(rope, text)
    elif kind not in ("default", "llama3"):
        raise RequestError(f"llama.cpp cannot run a model whose positions are scaled by {kind!r}")
    return found


def _yarn(arch: str, rope: Mapping[str, Any], text: Mapping[str, Any]) -> Metadata:
    """RequestError where llama.cpp would compute with other settings than the model."""
    for key, always in _YARN_ALWAYS.items():
        if (asked := rope.get(key, always)) != always:
            raise RequestError(f"llama.cpp computes YaRN with {key} = {always} only, not {asked}")
    whole = number(text, "max_position_embeddings")
    length = number(rope, "original_max_position_embeddings", whole)
    factor = number(rope, "factor", whole / length)
    found = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(length),
    }
    share = _yarn_attention(rope, factor) / yarn_attention(factor)
    if math.isclose(share, 1.0, rel_tol=1e-6):
        return found
    if arch == "gemma3":
        raise RequestError(
            "llama.cpp cannot run a gemma3 model with an attention factor for YaRN: it would "
            "apply to blocks with a window, too"
        )
    # llama.cpp multiplies its own yarn_attention by this
    return {**found, "rope.scaling.attn_factor": share}


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    """The attention factor by the rules of transformers' _compute_yarn_parameters."""
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor")
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        above, below = number(rope, "mscale"), number(rope, "mscale_all_dim")
        return yarn_attention(factor, above) / yarn_attention(factor, below)
    return yarn_attention(factor)


def _longrope(rope: Mapping[str, Any], text: Mapping[str, Any]) -> Metadata:
    length = number(rope, "original_max_position_embeddings")
    ratio = number(rope, "factor", number(text, "max_position_embeddings") / length)
    usual = math.sqrt(1 + math.log(ratio) / math.log(length)) if ratio > 1 < length else 1.0
    return {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": int(length),
        "rope.scaling.attn_factor": number(rope, "attention_factor", usual),
    }
