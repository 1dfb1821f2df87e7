"""Tiny models of any type: widths small, layers few, weights random. No torch on import."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmopt.discovery.layers import (
    COUNT,
    TOWERS,
    choices,
    is_per_layer,
    kinds_of,
    lists_of,
    with_layers,
)
from llmopt.pretrained import model_config, model_of, whole_model_of

if TYPE_CHECKING:
    import torch
    from torch import nn

VOCABULARY = 128
#: ids of special tokens that would be beyond the vocabulary go to its end, from here on
_SPECIAL_FROM = 100

_HIDDEN, _INNER, _EXPERT = 64, 96, 32
_HEADS, _HEAD = 4, 16
_EXPERTS = 6

#: the size for keys that match, whatever the size was; inputs of linears are multiples of 32
_EXACTLY: tuple[tuple[str, int], ...] = (
    (r"(backbone_|out_)?hidden_size(_global)?|d_model|n_embd|dim_model", _HIDDEN),
    (r"(mm_)?embed_dim|emb_dim|embedding_dim", _HIDDEN),
    (r"lru_width|router_hidden_size|adapter_(in|out)_dim|adapter_(in|out)put_size", _HIDDEN),
    (r"(projector_(in|out)put|output_proj)_dims?|vision_output_dim|ple_embed_dim", _HIDDEN),
    (r"attention_hidden_size|.*(pronunciation|shape)_embed_dim", _HIDDEN),
    (r"shared_expert.*_size|moe_shared_expert.*_size|shared_intermediate_size", _INNER),
    (r"moe_.*intermediate_size|expert_.*ffn.*_size|moe_latent_size", _EXPERT),
    (r"(.*_)?intermediate_size(_.*)?|.*ffn_dim|ffn_hidden_size|feed_forward_size", _INNER),
    (r"dim_ff|dff|n_inner|d_inner|mlp_dim", _INNER),
    (r"linear_num_(value_)?heads", _HEADS),
    (r"linear_num_key_heads", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_?dim", _HEAD),
    (r"mamba_d_ssm", 2 * _HIDDEN),
    (r"(.*_)?num_attention_heads|.*attention_heads|n_heads?|num_heads", _HEADS),
    (r"index(er)?_head_dim", 32),
    (r"global_head_dim|linear_head_dim", 2 * _HEAD),
    (r"(.*_)?head_dim|dim_head|attention_head_size|d_head|kv_channels|d_kv", _HEAD),
    (r"(num_|moe_num_|n_)?(local_|routed_)?experts", _EXPERTS),
    (r"(moe_)?num_experts_per_tok(en)?|moe_k|moe_top_?k|top_k_experts", 2),
    (r"([qkvo]+_)?lora_rank|hc_lowrank|laurel_rank|adapter_rank|gated_norm_rank", 32),
    (r"mamba_dt_rank|time_step_rank|mamba_d_state|(ssm_)?state_size", 32),
    (r"hidden_size_per_layer_input", 32),
    (r"sliding_window(_size)?|window_size|attention_window_size|local_attention(_window_len)?", 4),
    (r"(mamba_|attention_)?chunk_size|index_topk", 8),
    (r"index_block_size", 4),
    (r"index_topk_blocks", 2),
    (r"rotary_dim", 8),
)
#: ... and for keys that match, where it was more
_AT_MOST: tuple[tuple[str, int], ...] = (
    (r".*vocab_size(_.*)?|codebook_size", VOCABULARY),
    (r".*max_.*position.*|n_positions|n_ctx|max_seq_len|context_length|model_max_length", 128),
    (r"position_embedding_size|num_position_embeddings|mm_posemb_size", 64),
    (r"(.*_)?num_(key_value|kv)_heads|kv_n_heads|num_query_groups|indexer_kv_heads", 2),
    (r"mamba_n_?groups|n_groups|o_groups|n_shared_experts|.*num_shared_experts", 2),
    (r"n_group|topk_group|num_expert_group|num_nextn_predict_layers", 1),
    (r"first_k_dense_replace|num_dense_layers|encoder_layers|num_encoder_layers", 1),
    (r"image_size|crop_size", 56),
    (r"zero_expert_num|index_n_heads|rel_extent", 4),
)
#: widths that are the model's, or lead to it through a linear more
_NEAR_HIDDEN = r"(.*_)?embedding_size|word_embed_proj_dim"
_SPECIAL = r".*token_(id|index)"
#: buffers that are no constants: corrections of routers' scores, scales of layers, statistics
_FOUND_IN_TRAINING = r".*(bias|biases|scalar|running_(mean|var))"
#: tables of the experts of each token of the vocabulary
_EXPERTS_OF_TOKENS = ".tid2eid"
#: what a config says of one checkpoint, rather than of the model
_OF_CHECKPOINT = r"_.*|quantization_config|auto_map|(torch_)?dtype|transformers_version"


def shrunken(config: Mapping[str, Any], own: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The config.json with small widths, a small vocabulary and few experts; layers are as many.

    Parts (`text_config`, `vision_config`) shrink, too, and towers have as few layers as show all
    that their lists tell apart. `own` replaces values at last, inside of parts as well.
    """
    small = _part(config)
    _merge(small, own)
    return small


def tiny_config(config: Mapping[str, Any], own: Mapping[str, Any] = {}) -> Any:
    """transformers' config: `shrunken`, with as few layers as show every kind of block.

    Kinds are told by the names of a block's parameters, by what lists with an entry for each layer
    say, and by whether it shares keys and values. There are two layers at least.
    """
    whole = model_config(config).to_dict()  # with what config.json leaves to the class
    small = shrunken(whole, own)
    model = _hollow(small)
    kinds, lists = kinds_of(model), lists_of(model)
    for layers in choices(kinds):
        # configs refuse layers that do not fit them with errors of every type
        with contextlib.suppress(Exception):
            fewer = with_layers(small, layers, len(kinds))
            if set(kinds_of(_hollow(fewer), lists)) == set(kinds):
                return model_config(fewer)
    return model_config(small)


def tiny_model(config: Any, *, seed: int = 0, dtype: torch.dtype, whole: bool = False) -> nn.Module:
    """transformers' model of such a config, to evaluate, with weights of which each one matters.

    whole: with all parts of a model that does not take text alone.
    Attention and experts are the plain ones, in Python. The random state is left as it was.
    """
    import torch

    config = copy.deepcopy(config)
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        build = whole_model_of if whole else model_of
        model: nn.Module = build(config, dtype=dtype, attention="eager")
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
        stored = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in stored:
                _fill(name, buffer)
    return model.eval()


def _fill(name: str, buffer: torch.Tensor) -> None:
    """Make a buffer that checkpoints have matter, too."""
    import torch

    if re.fullmatch(_FOUND_IN_TRAINING, name):  # variances stay positive
        buffer.add_(torch.randn_like(buffer).abs() * 0.1)
    elif name.endswith(_EXPERTS_OF_TOKENS):
        order = torch.rand(len(buffer), _EXPERTS, device=buffer.device).argsort(1)
        buffer.copy_(order[:, : buffer.shape[1]])


def _part(config: Mapping[str, Any], *, tower: bool = False) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in config.items():
        if re.fullmatch(_OF_CHECKPOINT, key):
            continue
        if isinstance(value, Mapping) and _is_part(key, value):
            small[key] = _part(value, tower=TOWERS.search(key) is not None)
        else:
            small[key] = _shrunk(key, value)
    _agree(small, config)
    full = next((value for key, value in small.items() if re.fullmatch(COUNT, key)), None)
    if tower and isinstance(full, int) and full > 2:
        lists = [value for key, value in small.items() if is_per_layer(key, value, full)]
        kinds = list(zip(*lists, strict=True)) or [()] * full
        small = with_layers(small, next(choices(kinds)), full)
    return small


def _shrunk(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_shrunk(key, each) for each in value]
    if isinstance(value, bool) or not (isinstance(value, int) or value == "auto"):
        return value
    for pattern, size in _EXACTLY:
        if re.fullmatch(pattern, key):
            return size if value == "auto" or value > 0 else value
    if value == "auto":
        return value
    for pattern, size in _AT_MOST:
        if re.fullmatch(pattern, key):
            return min(value, size)
    if re.fullmatch(_SPECIAL, key) and value >= VOCABULARY:
        return _SPECIAL_FROM + value % (VOCABULARY - _SPECIAL_FROM)
    return value


def _agree(small: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Make what depends on several sizes fit them."""
    if small.get("kv_lora_rank"):  # latent attention: every head has keys of its own
        small |= {key: _HEADS for key in small if key.endswith("num_key_value_heads")}
        small |= {key: 2 * _HEAD for key in small if key == "qk_head_dim"}
    width = config.get("hidden_size") or config.get("d_model")
    for key, value in config.items():
        if re.fullmatch(_NEAR_HIDDEN, key) and isinstance(value, int):
            small[key] = _HIDDEN if value == width else _HIDDEN // 2
    if isinstance(layers := small.get("per_layer_config"), dict):
        layers = small["per_layer_config"] = dict(layers)
        for index, changes in layers.items():
            fewer = {key: _shrunk(key, value) for key, value in changes.items()}
            _agree(fewer, changes)
            # heads of layers that differ from the others go on to differ
            layers[index] = fewer | {key: 2 * _HEAD for key in fewer if key == "head_dim"}
    head = config.get("head_dim") or (width or 0) // (config.get("num_attention_heads") or 1)
    for key in ("rope_scaling", "rope_parameters"):
        if head and isinstance(rope := small.get(key), Mapping):
            small[key] = {
                name: value[: len(value) * _HEAD // head] if isinstance(value, list) else value
                for name, value in rope.items()
            }


def _merge(config: dict[str, Any], own: Mapping[str, Any]) -> None:
    for key, value in own.items():
        part = config.get(key)
        if isinstance(value, Mapping) and isinstance(part, dict) and _is_part(key, part):
            _merge(part, value)
        else:
            config[key] = copy.deepcopy(value)


def _is_part(key: str, value: Mapping[str, Any]) -> bool:
    return key != "per_layer_config" and (key.endswith("_config") or "model_type" in value)


def _hollow(config: Mapping[str, Any]) -> Any:
    """The model on the meta device."""
    import torch
    from accelerate import init_empty_weights

    with torch.random.fork_rng(), init_empty_weights(include_buffers=False):
        model: Any = model_of(model_config(config), dtype=torch.float32, attention="eager")
    model.tie_weights()  # ties do not outlive the way to the meta device
    return model
