"""What model cards offer, over all settings of all formats, against what each program refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from llmopt.specs import CHECKPOINT, FORMATS, LOADERS
from llmopt.specs.families import FAMILIES
from llmopt.specs.loaders import LOADS, loaders

GROUPS = (-1, 16, 32, 48, 64, 128, 256)
WRITTEN = sorted(id_ for id_, spec in FORMATS.items() if spec.grids and spec.kind == CHECKPOINT)


def layouts(format_id: str) -> Iterator[dict[str, Any]]:
    spec = FORMATS[format_id]
    groups = sorted(spec.group_sizes or GROUPS)
    acts = (None, *sorted(spec.activations))
    for grid, group, symmetric, desc, act in itertools.product(
        sorted(spec.grids), groups, (True, False), (True, False), acts
    ):
        yield {
            "grid": grid, "group_size": group, "symmetric": symmetric, "desc_act": desc,
            "activations": act,
        }  # fmt: skip


def facts(*layouts: dict[str, Any], **members: Any) -> dict[str, Any]:
    usual = {"family": "llama", "head": False, "plain": False, "apart": []}
    return {**usual, "layouts": list(layouts), **members}


def offered(format_id: str, *given: dict[str, Any], **members: Any) -> set[str]:
    return {spec.id for spec, _ in loaders(format_id, facts(*given, **members))}


def vllm_refuses(format_id: str, layout: dict[str, Any], family: str) -> bool:
    """As its source says: the types that its kernels have, and the groups of Marlin's."""
    experts = family in ("mixtral", "qwen2_moe", "qwen3_moe")
    grid, group, symmetric = layout["grid"], layout["group_size"], layout["symmetric"]
    if format_id.startswith("bitsandbytes"):
        return True  # a plugin's matter in later versions
    if layout["activations"] or grid == "fp8":
        weights_alone = layout["activations"] is None
        return group != -1 or not symmetric or (weights_alone and experts) or layout["desc_act"]
    if format_id == "awq":
        return bool(layout["desc_act"])
    if group not in (-1, 32, 64, 128):
        return True
    if format_id.startswith("gptq"):
        return grid not in ("int4", "int8") or not symmetric
    if layout["desc_act"]:  # removed from the package that it reads configs with
        return True
    return grid not in (("int4", "int8") if symmetric else ("int4",)) or (not symmetric and experts)


@pytest.mark.parametrize("format_id", WRITTEN)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_vllm_is_offered_nothing_that_it_refuses(format_id: str, family: str) -> None:
    for layout in layouts(format_id):
        if "vllm" in offered(format_id, layout, family=family):
            assert not vllm_refuses(format_id, layout, family), layout


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_by_bits_and_symmetry(bits: int, symmetric: bool, version: str) -> None:
    layout = {
        "grid": f"int{bits}", "group_size": 32, "symmetric": symmetric, "desc_act": False,
        "activations": None,
    }  # fmt: skip
    expected = {"transformers", "gptqmodel"} | ({"vllm"} if symmetric and bits in (4, 8) else set())
    assert offered(version, layout) == expected


@pytest.mark.parametrize("format_id", WRITTEN)
def test_who_makes_one_module_of_several_is_not_offered_parts_that_differ(format_id: str) -> None:
    for layout in layouts(format_id):
        assert "vllm" not in offered(format_id, layout, apart=["model.layers.0.mlp.experts"])


def test_fp8_in_blocks() -> None:
    blocks = {
        "grid": "fp8", "group_size": 128, "symmetric": True, "desc_act": False, "blocks": True,
        "activations": "fp8",
    }  # fmt: skip
    assert offered("compressed-tensors", blocks) == {"transformers", "vllm"}
    assert offered("compressed-tensors", blocks | {"activations": None}) == {"transformers"}
    assert offered("compressed-tensors", blocks | {"group_size": 64}) == {"transformers"}
    assert offered("compressed-tensors", blocks, ragged=True) == {"transformers"}
    assert offered("compressed-tensors", blocks | {"blocks": False}) == set()


def test_what_transformers_does_not_read_is_not_offered_to_it() -> None:
    int4 = {
        "grid": "int4", "group_size": 32, "symmetric": True, "desc_act": False, "activations": None,
    }  # fmt: skip
    int8 = int4 | {"grid": "int8"}
    for family in ("gpt2", "falcon", "opt", "qwen3_moe", "gemma3"):
        assert "transformers" not in offered("gptq", int4, family=family)
    assert "transformers" not in offered("gptq", int4, int8)  # it reads no `dynamic`
    assert "transformers" not in offered("gptq", int4, plain=True)
    assert "transformers" not in offered("gptq", int4, head=True)
    assert "transformers" in offered("compressed-tensors", int4, int8, plain=True, head=True)
    assert offered("compressed-tensors", int4 | {"desc_act": True}) == set()
    assert "transformers" not in offered("compressed-tensors", int4 | {"symmetric": False})
    assert "transformers" not in offered("compressed-tensors", int4, family="gpt2")


def test_of_a_quantized_artifact_that_says_nothing_nothing_is_known() -> None:
    for format_id in WRITTEN:
        assert list(loaders(format_id, None)) == []
    assert {spec.id for spec, _ in loaders("hf", None)} == {"transformers", "vllm"}
    assert {spec.id for spec, _ in loaders("gguf", None)} == {"llama.cpp", "llama-cpp-python"}


def test_every_row_names_a_program_and_its_version() -> None:
    assert set(LOADS) <= {*FORMATS, "hf"}
    for programs in LOADS.values():
        for program, what in programs.items():
            assert program in LOADERS
            assert ">=" in what.needs or program == "llama.cpp"
