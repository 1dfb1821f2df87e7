"""How llama.cpp calls the modules of each decoder family, and what it cannot express. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llmopt.errors import RequestError
from llmopt.specs.base import suggestion

#: how output rows lie in a file, see llmopt.formats.gguf.order
Order = Literal["interleaved", "by part", "by group"]


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """One family of specs.families in llama.cpp's words.

    architecture: as files say it. modules: those of a block, in the order of the file, and what
    llama.cpp calls them. outside: likewise, of what is beside the blocks, below the base. experts:
    the roles of an expert's linears (in ExpertsSpec), stored in one tensor for all experts.
    orders: the modules whose rows llama.cpp wants in another order. biases: the linears that may
    have one; norms may always. head: whether the file always has one of its own ("own"), never
    ("shared"), or where the model has. activations: the values of `hidden_act` and the like that
    llama.cpp computes, the ones it was written for first.
    """

    architecture: str
    modules: Mapping[str, str]
    outside: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, Order] = field(default_factory=dict)
    biases: frozenset[str] = frozenset()
    head: Literal["own", "shared", "free"] = "free"
    activations: tuple[str, ...] = ("silu",)


_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_ATTENTION_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_EXPERTS = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
_QKV = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
_GELU_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu")
#: what ggml computes is the tanh form, whose difference from the exact one is below 5e-4
_GELU = ("gelu", *_GELU_TANH[:-1])

_LLAMA = GgufFamily(
    architecture="llama",
    modules={**_NORMS, **_ATTENTION, **_MLP},
    outside={"embed_tokens": "token_embd", "norm": "output_norm"},
    orders={"self_attn.q_proj": "interleaved", "self_attn.k_proj": "interleaved"},
    biases=_QKV | {"self_attn.o_proj", *_MLP},
)
_QWEN2 = replace(_LLAMA, architecture="qwen2", orders={}, biases=_QKV)
_QWEN3 = replace(_QWEN2, architecture="qwen3", modules={**_LLAMA.modules, **_ATTENTION_NORMS})
_ROUTER = {"mlp.gate": "ffn_gate_inp"}
_GEMMA2 = replace(
    _QWEN2,
    architecture="gemma2",
    modules={
        "input_layernorm": "attn_norm",
        **_ATTENTION,
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        **_MLP,
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    head="shared",
    activations=_GELU_TANH[:-1],
)
_GEMMA3 = replace(
    _GEMMA2, architecture="gemma3", modules={**_GEMMA2.modules, **_ATTENTION_NORMS}, head="free"
)
_NEOX_MLP = {"mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}

GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": replace(
        _LLAMA, modules={**_NORMS, **_ATTENTION, **_ROUTER}, experts=_EXPERTS, biases=frozenset()
    ),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "qwen2_moe": replace(
        _QWEN2,
        architecture="qwen2moe",
        modules={
            **_NORMS,
            **_ATTENTION,
            **_ROUTER,
            "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
            "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
            "mlp.shared_expert.up_proj": "ffn_up_shexp",
            "mlp.shared_expert.down_proj": "ffn_down_shexp",
        },
        experts=_EXPERTS,
        head="own",
    ),
    "qwen3_moe": replace(
        _QWEN3,
        architecture="qwen3moe",
        modules={**_NORMS, **_ATTENTION, **_ATTENTION_NORMS, **_ROUTER},
        experts=_EXPERTS,
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "phi3": replace(
        _QWEN2,
        architecture="phi3",
        modules={
            **_NORMS,
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        biases=frozenset(),
    ),
    "gpt2": GgufFamily(
        architecture="gpt2",
        modules={
            "ln_1": "attn_norm",
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_output",
            "ln_2": "ffn_norm",
            "mlp.c_fc": "ffn_up",
            "mlp.c_proj": "ffn_down",
        },
        outside={"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"},
        biases=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        activations=_GELU_TANH,
    ),
    "gpt_neox": GgufFamily(
        architecture="gptneox",
        modules={
            "input_layernorm": "attn_norm",
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            **_NEOX_MLP,
        },
        outside={"embed_in": "token_embd", "final_layer_norm": "output_norm"},
        orders={"attention.query_key_value": "by part"},
        biases=frozenset({"attention.query_key_value", "attention.dense", *_NEOX_MLP}),
        head="own",
        activations=_GELU,
    ),
    "falcon": GgufFamily(
        architecture="falcon",
        modules={
            "input_layernorm": "attn_norm",
            "ln_mlp": "attn_norm",
            "ln_attn": "attn_norm_2",
            "self_attention.query_key_value": "attn_qkv",
            "self_attention.dense": "attn_output",
            **_NEOX_MLP,
        },
        outside={"word_embeddings": "token_embd", "ln_f": "output_norm"},
        orders={"self_attention.query_key_value": "by group"},
        activations=_GELU,
    ),
}


def gguf_family(family: str) -> GgufFamily:
    """llama.cpp's words for a family of specs.families; RequestError where it has none."""
    if family not in GGUF_FAMILIES:
        raise RequestError(
            f"llama.cpp cannot run {family} models, so they cannot be written as GGUF",
            hint=suggestion(family, GGUF_FAMILIES),
        )
    return GGUF_FAMILIES[family]


def check_supported(family: str, config: Mapping[str, Any]) -> None:
    """RequestError where llama.cpp computes something else than this text model's config says."""
    spec = gguf_family(family)
    get = config.get
    act = next((get(key) for key in _ACTIVATION_KEYS if get(key)), spec.activations[0])
    width, heads = int(get("hidden_size") or 0), int(get("num_attention_heads") or 1)
    head_dim = get("head_dim") or width // heads
    faults = {
        f"the activation {act}": act not in spec.activations,
        "ALiBi position biases": bool(get("alibi")),
        "attention before the feed-forward network": family == "falcon"
        and not get("parallel_attn", True)
        and not get("new_decoder_architecture"),
        "blocks without experts": bool(spec.experts)
        and (bool(get("mlp_only_layers")) or get("decoder_sparse_step", 1) != 1),
        "expert weights that are normalised": spec.architecture == "qwen2moe"
        and bool(get("norm_topk_prob")),
        "expert weights that are not normalised": spec.architecture == "qwen3moe"
        and not get("norm_topk_prob", True),
        "attention scaled by a block's index": bool(get("scale_attn_by_inverse_layer_idx")),
        "unscaled attention": not get("scale_attn_weights", True),
        "heads that do not fill the width": spec.architecture in ("phi3", "qwen2moe")
        and head_dim * heads != width,
        "attention in both directions": bool(get("use_bidirectional_attention")),
    }
    for fault, found in faults.items():
        if found:
            raise RequestError(f"llama.cpp cannot run this {family} model: it has {fault}")


_ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "activation")
