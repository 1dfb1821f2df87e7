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

from tests import models
from tests.formats.test_engine_names import FORMATS, left_plain
from tests.stages.conftest import quantized


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
def gemma3_with_a_tower(tmp_path: Path, make: Any) -> Path:
    """A multimodal model beside a tokenizer and texts."""
    folder = make("gemma3_text")
    config = Gemma3Config(
        text_config={**models.FAMILY_SETTINGS["gemma3_text"], "vocab_size": 96,
                     "intermediate_size": 128, "tie_word_embeddings": True},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                       "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=90, boi_token_index=91, eoi_token_index=92,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    model.save_pretrained(folder)
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
