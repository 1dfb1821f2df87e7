"""What a GGUF file says of rotary position embeddings, in the words of config.json. No torch."""

from __future__ import annotations

import math

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.gguf.facts import Facts, shortest
from llmopt.formats.gguf.rope import factors, yarn_attention

#: Llama 3's, which only the factor and the original length vary from model to model
_LOW, _HIGH = 1.0, 4.0


def rope_config(facts: Facts) -> JsonObject:
    """rope_theta, rope_scaling and what belongs to them.

    RequestError where the file scales positions in a way that transformers has no name for.
    """
    theta = facts.real("rope.freq_base", 10000.0)
    if theta <= 0:
        raise facts.wrong("rope.freq_base", theta)
    found: JsonObject = {"rope_theta": theta}
    if facts.architecture == "gptneox":
        found["rotary_emb_base"] = theta
    if facts.architecture == "gemma3":
        found["rope_local_base_freq"] = facts.real("rope.freq_base_swa", 10000.0)
    if facts.architecture == "phi3" and facts.rotary_dim != facts.head_dim:
        found["partial_rotary_factor"] = facts.rotary_dim / facts.head_dim
    if "rope_factors_long.weight" in facts.gguf.tensors:
        return found | _longrope(facts)
    if "rope_freqs.weight" in facts.gguf.tensors:
        values = facts.floats("rope_freqs.weight")
        even = all(value == 1.0 for value in values)
        scaling = None if even else _llama3(facts, values, theta)
    else:
        scaling = _scaling(facts)
    share = facts.real("rope.scaling.attn_factor", 1.0)
    if share != 1.0 and "attention_factor" not in (scaling or {}):
        raise facts.wrong("rope.scaling.attn_factor", share)
    return found if scaling is None else {**found, "rope_scaling": scaling}


def _scaling(facts: Facts) -> JsonObject | None:
    """What the metadata alone says of scaling."""
    kind = facts.get("rope.scaling.type") or "linear"
    if kind == "yarn":
        return _yarn(facts)
    if kind not in ("linear", "none"):
        raise facts.wrong("rope.scaling.type", kind)
    # older files give a factor without saying of what
    factor = facts.real("rope.scaling.factor", facts.real("rope.scale_linear", 1.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    return {"type": "linear", "rope_type": "linear", "factor": factor}


def _yarn(facts: Facts) -> JsonObject:
    """Not from yarn_ext_factor, yarn_attn_factor and the betas: llama.cpp does not read them."""
    factor, share = facts.real("rope.scaling.factor"), facts.real("rope.scaling.attn_factor", 1.0)
    if factor <= 0:
        raise facts.wrong("rope.scaling.factor", factor)
    whole = facts.number("context_length")  # what llama.cpp takes where the file does not say
    scaling: JsonObject = {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": facts.number(
            "rope.scaling.original_context_length", whole
        ),
    }
    if share != 1.0:
        # gemma3: llama.cpp would apply it to blocks with a window, too
        if share <= 0 or facts.architecture == "gemma3":
            raise facts.wrong("rope.scaling.attn_factor", share)
        scaling["attention_factor"] = shortest(share * yarn_attention(factor))
    return scaling


def _longrope(facts: Facts) -> JsonObject:
    length = facts.number("rope.scaling.original_context_length")
    whole = facts.number("context_length")  # what llama.cpp takes where the file does not say
    scaling: JsonObject = {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": [*facts.floats("rope_factors_long.weight")],
        "short_factor": [*facts.floats("rope_factors_short.weight")],
    }
    usual = (
        math.sqrt(1 + math.log(whole / length) / math.log(length)) if whole > length > 1 else 1.0
    )
    attention = facts.real("rope.scaling.attn_factor", usual)
    if not math.isclose(attention, usual, rel_tol=1e-5):
        scaling["attention_factor"] = attention
    return {"rope_scaling": scaling, "original_max_position_embeddings": length}


def _llama3(facts: Facts, values: list[float], theta: float) -> JsonObject:
    """The settings of Llama 3's rule that give these divisors of the frequencies.

    Its smooth part tells the original length, in which shares of 1 and 1 / factor are linear.
    """
    factor, size = max(values), facts.rotary_dim
    if factor <= 1.0:
        raise _no_rule(facts)
    lengths: list[float] = []
    shortest_length = 0.0
    for index, value in enumerate(values):
        wave = 2 * math.pi * theta ** (2 * index / size)
        if 1.0 < value < factor:
            smooth = (1 / value - 1 / factor) / (1 - 1 / factor)
            lengths.append(wave * (smooth * (_HIGH - _LOW) + _LOW))
        elif value == 1.0:
            shortest_length = wave * _HIGH
    if not lengths:  # any length between two frequencies will do
        lengths = [shortest_length * 1.01]
    scaling: JsonObject = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": round(sum(lengths) / len(lengths)),
    }
    text = {"head_dim": size, "rope_theta": theta, "rope_scaling": scaling}
    made = factors(text)["rope_freqs.weight"]
    near = (math.isclose(a, b, rel_tol=1e-4) for a, b in zip(made, values, strict=False))
    if len(made) != len(values) or not all(near):
        raise _no_rule(facts)
    return scaling


def _no_rule(facts: Facts) -> RequestError:
    name = facts.gguf.paths[0].name
    return RequestError(f"{name} divides rope's frequencies by no known rule")
