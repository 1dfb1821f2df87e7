"""What a GGUF file says of rotary position embeddings, in the words of config.json. No torch."""

from __future__ import annotations

import math
import struct
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import GgufFile
from llmopt.formats.gguf.rope import factors

#: Llama 3's, which only the factor and the original length vary from model to model
_LOW, _HIGH = 1.0, 4.0


def shortest(value: float) -> float:
    """A float32 in the fewest digits that stand for it."""
    for digits in (6, 7, 8):
        found = float(f"{value:.{digits}g}")
        if struct.pack("<f", found) == struct.pack("<f", value):
            return found
    return float(f"{value:.9g}")


def rope_config(gguf: GgufFile, head_dim: int) -> dict[str, Any]:
    """rope_theta, rope_scaling and what belongs to them.

    RequestError where the file scales positions in a way that transformers has no name for.
    """
    architecture = gguf.architecture

    def get(key: str, default: Any) -> Any:
        return gguf.metadata.get(f"{architecture}.rope.{key}", default)

    theta, turned = shortest(get("freq_base", 10000.0)), get("dimension_count", head_dim)
    found: dict[str, Any] = {"rope_theta": theta}
    if architecture == "gptneox":
        found["rotary_emb_base"] = theta
    if architecture == "gemma3":
        found["rope_local_base_freq"] = shortest(get("freq_base_swa", 10000.0))
    if architecture == "phi3" and turned != head_dim:
        found["partial_rotary_factor"] = turned / head_dim
    if "rope_factors_long.weight" in gguf.tensors:
        return found | _longrope(gguf)
    if "rope_freqs.weight" in gguf.tensors:
        values = _floats(gguf, "rope_freqs.weight")
        even = all(value == 1.0 for value in values)
        scaling = None if even else _llama3(gguf, values, theta, turned)
    else:
        scaling = _scaling(gguf)
    return found if scaling is None else {**found, "rope_scaling": scaling}


def _scaling(gguf: GgufFile) -> dict[str, Any] | None:
    """What the metadata alone says of scaling."""
    prefix = f"{gguf.architecture}.rope."
    # older files give a factor without saying of what
    factor = gguf.metadata.get(
        prefix + "scaling.factor", gguf.metadata.get(prefix + "scale_linear", 1.0)
    )
    kind = gguf.metadata.get(prefix + "scaling.type", "linear")
    if kind == "yarn":
        return _yarn(gguf)
    if kind not in ("linear", "none"):
        raise RequestError(f"{gguf.paths[0].name} scales positions by {kind!r}, which is not known")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    return {"type": "linear", "rope_type": "linear", "factor": factor}


def _yarn(gguf: GgufFile) -> dict[str, Any]:
    prefix = f"{gguf.architecture}.rope.scaling."
    keys = {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "attention_factor": "yarn_attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    }
    found = {key: gguf.metadata.get(prefix + name) for key, name in keys.items()}
    settings = {key: value for key, value in found.items() if value is not None}
    return {"type": "yarn", "rope_type": "yarn", **settings}


def _longrope(gguf: GgufFile) -> dict[str, Any]:
    prefix = f"{gguf.architecture}."
    length = gguf.metadata.get(prefix + "rope.scaling.original_context_length")
    whole = gguf.metadata.get(prefix + "context_length")
    if not isinstance(length, int) or not isinstance(whole, int) or length < 2:
        raise RequestError(f"{gguf.paths[0].name} does not say its original context length")
    scaling: dict[str, Any] = {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": _floats(gguf, "rope_factors_long.weight"),
        "short_factor": _floats(gguf, "rope_factors_short.weight"),
    }
    usual = math.sqrt(1 + math.log(whole / length) / math.log(length)) if whole > length else 1.0
    attention = gguf.metadata.get(prefix + "rope.scaling.attn_factor", usual)
    if not math.isclose(attention, usual, rel_tol=1e-5):
        scaling["attention_factor"] = attention
    return {"rope_scaling": scaling, "original_max_position_embeddings": length}


def _llama3(gguf: GgufFile, values: list[float], theta: float, size: int) -> dict[str, Any]:
    """The settings of Llama 3's rule that give these divisors of the frequencies.

    Its smooth part tells the original length, in which shares of 1 and 1 / factor are linear.
    """
    factor, base = max(values), theta
    lengths: list[float] = []
    shortest_length = 0.0
    for index, value in enumerate(values):
        wave = 2 * math.pi * base ** (2 * index / size)
        if 1.0 < value < factor:
            smooth = (1 / value - 1 / factor) / (1 - 1 / factor)
            lengths.append(wave * (smooth * (_HIGH - _LOW) + _LOW))
        elif value == 1.0:
            shortest_length = wave * _HIGH
    if not lengths:  # any length between two frequencies will do
        lengths = [shortest_length * 1.01]
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": round(sum(lengths) / len(lengths)),
    }
    text = {"head_dim": size, "rope_theta": theta, "rope_scaling": scaling}
    made = factors(text)["rope_freqs.weight"]
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(made, values, strict=True)):
        raise RequestError(f"{gguf.paths[0].name} divides rope's frequencies by no known rule")
    return scaling


def _floats(gguf: GgufFile, name: str) -> list[float]:
    """A small tensor of float32, in the digits that a person would write."""
    if name not in gguf.tensors:
        raise RequestError(f"{gguf.paths[0].name} has no tensor {name}")
    tensor = gguf.tensors[name]
    if tensor.type_id != "F32" or len(tensor.shape) != 1:
        raise RequestError(f"{tensor.file.name} has a tensor {name} that is no list of float32")
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        values = struct.unpack(f"<{tensor.shape[0]}f", file.read(tensor.end - tensor.start))
    return [shortest(value) for value in values]
