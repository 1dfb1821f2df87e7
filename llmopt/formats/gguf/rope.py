"""What a config says of rotary position embeddings, and llama.cpp's words for it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmopt.errors import RequestError

#: what float32 holds
_LARGEST = 3.4e38


def parameters(text: Mapping[str, Any], kind: str = "full_attention") -> Mapping[str, Any]:
    """rope_theta, rope_type and what belongs to it, for the blocks with this kind of attention.

    Reads both ways that configs have said it: `rope_parameters`, per kind of attention or not, and
    `rope_theta` beside `rope_scaling`.
    """
    found = text.get("rope_parameters")
    if isinstance(found, dict):
        found = found.get(kind, found)
    else:
        found = {"rope_theta": text.get("rope_theta"), **(text.get("rope_scaling") or {})}
        for old in ("rotary_emb_base",):
            if found["rope_theta"] is None:
                found["rope_theta"] = text.get(old)
        if kind == "sliding_attention" and text.get("rope_local_base_freq"):
            found = {"rope_theta": text["rope_local_base_freq"]}
    result = {key: value for key, value in found.items() if value is not None}
    result["rope_type"] = result.get("rope_type") or result.get("type") or "default"
    if result["rope_type"] == "su":
        result["rope_type"] = "longrope"
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key not in result and text.get(key) is not None:
            result[key] = text[key]
    if "partial_rotary_factor" not in result and text.get("rotary_pct") is not None:
        result["partial_rotary_factor"] = text["rotary_pct"]
    return result


def number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A setting of a config; RequestError where it is no number above 0 that float32 holds."""
    value = settings.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise RequestError(f"config.json should give {key} as a number above 0, not {value!r}")
    return float(value)


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies rotated queries and keys by, where contexts grow by `factor`.

    transformers' get_mscale. With a scale of 1 it is what llama.cpp multiplies by on its own.
    """
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def head_dim(text: Mapping[str, Any]) -> int:
    """Weights of a head."""
    return int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"])


def rotary_dim(text: Mapping[str, Any]) -> int:
    """Those that are rotated."""
    return int(head_dim(text) * parameters(text).get("partial_rotary_factor", 1.0))


def factors(text: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The tensors of divisors of each frequency that the scaling of a text model needs, by name.

    llama3: Llama 3.1's scaling by wavelength. longrope: Phi-3's two lists, for contexts up to the
    original length and beyond.
    """
    if text.get("model_type") == "gpt2":
        return {}
    rope = parameters(text)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3(rope, rotary_dim(text))}
    if rope["rope_type"] != "longrope":
        return {}
    found = {}
    for which in ("long", "short"):
        values = rope.get(f"{which}_factor")
        if not isinstance(values, list) or len(values) != rotary_dim(text) // 2:
            raise RequestError(
                f"config.json should list {rotary_dim(text) // 2} numbers as rope's {which}_factor"
            )
        found[f"rope_factors_{which}.weight"] = tuple(float(value) for value in values)
    return found


def _llama3(rope: Mapping[str, Any], size: int) -> tuple[float, ...]:
    base, factor = number(rope, "rope_theta", 10000.0), number(rope, "factor")
    low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
    length = number(rope, "original_max_position_embeddings")
    found = []
    for index in range(0, size, 2):
        turns = length / (2 * math.pi * base ** (index / size))
        if turns > high:
            found.append(1.0)
        elif turns < low:
            found.append(factor)
        else:
            smooth = (turns - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(found)
