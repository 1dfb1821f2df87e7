"""Configs name modules as engines call them: matched here as each engine's source matches them."""

from __future__ import annotations

import importlib
import re
import time
from typing import Any

import pytest

from llmopt.formats.engine_names import EngineNames, apart
from llmopt.model.layout import Layout
from llmopt.specs.families import FAMILIES, Naming
from llmopt.specs.families import naming_of as naming_in

INT4 = Layout(grid="int4", group_size=32, symmetric=True)
INT8 = Layout(grid="int8", group_size=32, symmetric=True)
ROWS8 = Layout(grid="int8", group_size=-1, symmetric=True)
NF4 = Layout(grid="nf4", group_size=64, symmetric=True)

#: format -> settings of a quantize step that it takes
FORMATS: dict[str, dict[str, Any]] = {
    "gptq": {},
    "awq": {"symmetric": False},
    "compressed-tensors": {},
    "bitsandbytes-nf4": {"grid": "nf4", "group_size": 64},
    "bitsandbytes-int8": {"grid": "int8", "group_size": -1},
}


def linears(family: str, base: str = "model", blocks: int = 2, experts: int = 0) -> list[str]:
    names = [f"{base}.layers.{b}.self_attn.{x}_proj" for b in range(blocks) for x in "qkvo"]
    kinds = ("gate_proj", "up_proj", "down_proj")
    inside = [f"experts.{e}." for e in range(experts)] or [""]
    names += [f"{base}.layers.{b}.mlp.{e}{k}" for b in range(blocks) for e in inside for k in kinds]
    assert family in FAMILIES
    return names


def naming_of(family: str, names: list[str]) -> Naming:
    return naming_in(FAMILIES[family], (f"{name}.weight" for name in names))


def config(format_id: str, layers: dict[str, Layout], plain: list[str], naming: Naming) -> Any:
    module, version = {
        "gptq": ("gptq", "gptq"),
        "awq": ("awq", None),
        "compressed-tensors": ("compressed_tensors", None),
        "bitsandbytes-nf4": ("bitsandbytes", "nf4"),
        "bitsandbytes-int8": ("bitsandbytes", "int8"),
    }[format_id]
    write = importlib.import_module(f"llmopt.formats.{module}_config").quantization_config
    return write(
        layers, version=version, unquantized=plain, head="lm_head", names=EngineNames(naming)
    )


def vllm_dynamic(stored: dict[str, Any], prefix: str) -> Any:
    """False: left plain; None: the defaults; else what overrides them. vLLM, SGLang, GPTQModel."""
    for pattern, override in stored.get("dynamic", {}).items():
        if re.match(pattern.removeprefix("-:").removeprefix("+:"), prefix):
            return False if pattern.startswith("-:") else override
    return None


def vllm_scheme(stored: dict[str, Any], prefix: str) -> Any:
    """The group of a module by name, else by class: vLLM looks so before it takes it apart."""
    groups = stored["config_groups"].values()
    for group in groups:
        for target in group["targets"]:
            is_pattern = target.startswith("re:")
            if re.match(target[3:], prefix) if is_pattern else target == prefix:
                return group["weights"]
    return next(group["weights"] for group in groups if "Linear" in group["targets"])


def names_list(stored: dict[str, Any]) -> list[str]:
    keys = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")
    return next(stored[key] for key in keys if key in stored)


def left_plain(stored: dict[str, Any], name: str) -> bool:
    """Whether a reader that goes by whole names leaves this module alone."""
    if stored["quant_method"] == "gptq":
        return vllm_dynamic(stored, name) is False
    return name in names_list(stored)


def test_an_override_of_all_that_is_fused_holds_for_the_fused_module() -> None:
    names = linears("llama")
    layers = {
        name: INT8 if name.endswith(("q_proj", "k_proj", "v_proj")) else INT4 for name in names
    }
    naming = naming_of("llama", names)
    stored = config("gptq", layers, [], naming)
    for name in ("qkv_proj", "q_proj", "k_proj", "v_proj"):
        assert vllm_dynamic(stored, f"model.layers.1.self_attn.{name}")["bits"] == 8
    for name in ("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
        assert vllm_dynamic(stored, f"model.layers.1.{name}") is None
    mixed = config("compressed-tensors", layers, [], naming)
    assert vllm_scheme(mixed, "model.layers.1.self_attn.qkv_proj")["num_bits"] == 8
    assert vllm_scheme(mixed, "model.layers.1.mlp.gate_up_proj")["num_bits"] == 4
    assert apart(naming, layers, []) == {}


@pytest.mark.parametrize("format_id", FORMATS)
def test_what_is_fused_is_left_plain_where_all_its_parts_are(format_id: str) -> None:
    names = linears("qwen3_moe", experts=12)
    plain = [name for name in names if ".0.mlp.experts." in name or ".1.self_attn." in name]
    layout = {"bitsandbytes-nf4": NF4, "bitsandbytes-int8": ROWS8}.get(format_id, INT4)
    layers = {name: layout for name in names if name not in plain}
    stored = config(format_id, layers, plain, naming_of("qwen3_moe", names))
    assert left_plain(stored, "model.layers.1.self_attn.qkv_proj")
    assert not left_plain(stored, "model.layers.0.self_attn.qkv_proj")
    assert left_plain(stored, "model.layers.0.mlp.experts")
    assert left_plain(stored, "model.layers.0.mlp.experts.11.up_proj")
    assert not left_plain(stored, "model.layers.1.mlp.experts")
    if format_id == "gptq":  # experts are one entry, however many there are
        assert len(stored["dynamic"]) == 2


@pytest.mark.parametrize("parts", [{"v_proj"}, {"q_proj", "k_proj"}, {"up_proj"}])
def test_parts_that_differ_are_found_and_the_fused_module_has_no_entry(parts: set[str]) -> None:
    names = linears("llama", blocks=1)
    plain = [name for name in names if name.rpartition(".")[2] in parts]
    layers = {name: INT4 for name in names if name not in plain}
    naming = naming_of("llama", names)
    fused = "mlp.gate_up_proj" if "up_proj" in parts else "self_attn.qkv_proj"
    assert list(apart(naming, layers, plain)) == [f"model.layers.0.{fused}"]
    assert vllm_dynamic(config("gptq", layers, plain, naming), f"model.layers.0.{fused}") is None


def test_one_expert_that_differs_sets_all_of_them_apart() -> None:
    names = linears("qwen3_moe", experts=3)
    layers = dict.fromkeys(names, INT4) | {"model.layers.1.mlp.experts.2.up_proj": INT8}
    found = apart(naming_of("qwen3_moe", names), layers, [])
    assert list(found) == ["model.layers.1.mlp.experts"]
    assert len(found["model.layers.1.mlp.experts"]) == 9


@pytest.mark.parametrize("format_id", FORMATS)
def test_one_expert_that_is_left_plain_leaves_the_others_quantized(format_id: str) -> None:
    names = linears("qwen3_moe", experts=3)
    plain = [name for name in names if ".0.mlp.experts.1." in name]
    layout = {"bitsandbytes-nf4": NF4, "bitsandbytes-int8": ROWS8}.get(format_id, INT4)
    layers = {name: layout for name in names if name not in plain}
    stored = config(format_id, layers, plain, naming_of("qwen3_moe", names))
    assert [name for name in names if left_plain(stored, name)] == plain
    assert not left_plain(stored, "model.layers.0.mlp.experts")


def test_names_that_begin_alike_are_told_apart() -> None:
    names = linears("llama", blocks=12)
    plain = [name for name in names if ".layers.1." in name]
    layers = {name: INT4 for name in names if name not in plain}
    stored = config("gptq", layers, plain, naming_of("llama", names))
    for name in names:
        assert (vllm_dynamic(stored, name) is False) == (name in plain)


@pytest.mark.parametrize(
    ("base", "tower"),
    [("language_model.model", "vision_tower"), ("model.language_model", "model.vision_tower")],
)
def test_a_multimodal_checkpoint_of_either_time_names_what_both_have(base: str, tower: str) -> None:
    names = linears("gemma3", base)
    towers = [f"{tower}.encoder.layers.0.self_attn.{x}_proj" for x in "qkv"]
    plain = [*towers, f"{base}.layers.1.self_attn.v_proj"]
    layers = {
        name: INT8 if name.endswith(("gate_proj", "up_proj")) else INT4
        for name in names
        if name not in plain
    }
    naming = naming_of("gemma3", names)
    stored = config("compressed-tensors", layers, [*plain], naming)
    dynamic = config("gptq", layers, plain, naming)
    for start in ("", "model."):
        for part in ("q_proj", "qkv_proj"):
            name = f"{start}vision_tower.encoder.layers.0.self_attn.{part}"
            assert left_plain(stored, name)
            assert left_plain(dynamic, name)
    for start in ("language_model.model", "model.language_model"):
        assert left_plain(stored, f"{start}.layers.1.self_attn.v_proj")
        assert left_plain(dynamic, f"{start}.layers.1.self_attn.v_proj")
        assert vllm_scheme(stored, f"{start}.layers.0.mlp.gate_up_proj")["num_bits"] == 8
        assert vllm_dynamic(dynamic, f"{start}.layers.0.mlp.gate_up_proj")["bits"] == 8
        assert vllm_dynamic(dynamic, f"{start}.layers.0.mlp.down_proj") is None
    for head in ("lm_head", "language_model.lm_head"):
        only = naming_in(FAMILIES["gemma3"], [*(f"{n}.weight" for n in names)])
        assert head in EngineNames(only).all_of([only.head])


def test_a_model_of_many_experts_takes_no_longer_than_its_names() -> None:
    names = linears("qwen3_moe", blocks=16, experts=128)
    plain = [name for name in names if ".experts." in name]
    layers = {name: INT4 for name in names if name not in set(plain)}
    naming = naming_of("qwen3_moe", names)
    for format_id in ("gptq", "awq", "compressed-tensors"):
        started = time.process_time()
        config(format_id, layers, plain, naming)
        assert time.process_time() - started < 3
