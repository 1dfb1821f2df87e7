"""What a whole checkpoint's config names, for models with more than a text model's blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from llmopt import pipeline, planner
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import QUANTIZE_CONFIG
from llmopt.recipe import from_data
from llmopt.step import RunOptions
from tests import models
from tests.formats.test_engine_names import FORMATS, left_plain
from tests.test_pipeline import Log
from tests.verbs.conftest import quantized


def add_layers_that_look_ahead(folder: Path, where: str) -> list[str]:
    """Give the model in `folder` such layers; the names of their linears."""
    tensors = load_file(folder / "model.safetensors")
    first = [name for name in tensors if name.startswith("model.layers.0.")]
    copy = {f"{where}{name.removeprefix('model.layers.0.')}": tensors[name] for name in first}
    root = where.partition("layers.0.")[0] if where.startswith("mtp") else where
    extra = "fc" if where.startswith("mtp") else "eh_proj"
    copy[f"{root}{extra}.weight"] = torch.randn(64, 128)
    added = {name: tensor.clone() for name, tensor in copy.items()}
    save_file(tensors | added, folder / "model.safetensors", metadata={"format": "pt"})
    return [n.removesuffix(".weight") for n, t in added.items() if t.ndim == 2]


@pytest.mark.parametrize("where", ["mtp.layers.0.", "model.layers.2."])
@pytest.mark.parametrize("format_id", FORMATS)
def test_layers_that_look_ahead_are_named(
    tmp_path: Path, make: Any, format_id: str, where: str
) -> None:
    folder = make("qwen3", intermediate_size=128)
    ahead = add_layers_that_look_ahead(folder, where)
    made = quantized(
        tmp_path, folder, method="rtn", format=format_id, transform="none", **FORMATS[format_id]
    )
    stored = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert len(ahead) == 8
    for name in [*ahead, f"{where}self_attn.qkv_proj", f"{where}mlp.gate_up_proj"]:
        assert left_plain(stored, name), name
    assert not left_plain(stored, "model.layers.0.self_attn.q_proj")
    assert not left_plain(stored, "model.layers.1.self_attn.qkv_proj")


@pytest.fixture
def gemma3_with_a_tower(make: Any) -> Path:
    """A multimodal model beside a tokenizer and texts."""
    folder: Path = make("gemma3_text")
    models.save_gemma3_with_a_tower(folder)
    return folder


@pytest.mark.parametrize("format_id", FORMATS)
def test_every_linear_of_a_multimodal_model_is_quantized_or_named(
    tmp_path: Path, gemma3_with_a_tower: Path, format_id: str
) -> None:
    made = quantized(
        tmp_path, gemma3_with_a_tower, method="rtn", format=format_id, transform="none",
        **FORMATS[format_id],
    )  # fmt: skip
    document = json.loads((made.path / "config.json").read_text())
    stored = document["quantization_config"]
    model = Gemma3ForConditionalGeneration(Gemma3Config.from_dict(document))
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in found if name.startswith("model.language_model.layers.")}
    assert len(inside) == 14
    outside = found - inside - ({"lm_head"} if format_id in ("gptq", "awq") else set())
    assert {name for name in outside if not left_plain(stored, name)} == set()
    assert {name for name in inside if left_plain(stored, name)} == set()
    # vLLM's names for the same modules
    assert left_plain(stored, "vision_tower.encoder.layers.0.self_attn.qkv_proj")
    assert not left_plain(stored, "language_model.model.layers.0.self_attn.qkv_proj")


def test_both_files_say_the_same_and_none_is_left_of_another_format(
    tmp_path: Path, make: Any
) -> None:
    folder = make("llama", intermediate_size=128)
    made = quantized(
        tmp_path, folder, method="rtn", overrides=[{"match": "*.[qkv]_proj", "grid": "int8"}]
    )
    stored = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert json.loads((made.path / QUANTIZE_CONFIG).read_text()) == stored
    assert any(override.get("bits") == 8 for override in stored["dynamic"].values())
    # a list of other tools that says which linears are quantized changes nothing: tensors say it
    stored["modules_in_block_to_quantize"] = [["self_attn.q_proj"], ["mlp.down_proj"]]
    document = json.loads((made.path / "config.json").read_text())
    (made.path / "config.json").write_text(json.dumps(document | {"quantization_config": stored}))
    (made.path / "llmopt.json").unlink()
    assert len(Checkpoint.open(made.path).layers) == 14
    recipe = {"convert": {"to": "compressed-tensors", "exact": True, "gate": []}}
    data = {"version": 1, "model": str(made.path), "steps": [{"id": "c", **recipe}]}
    plan = planner.plan(*from_data(data), tmp_path / "ct")
    done = pipeline.run(plan, RunOptions("cpu"), Log())
    assert (tmp_path / "ct" / "config.json").is_file(), done
    assert not (tmp_path / "ct" / QUANTIZE_CONFIG).exists()
