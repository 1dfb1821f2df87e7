"""Conversions to GGUF of various dtypes: a tensor is kept as it is, or said to be rounded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import artifact
from llmopt.errors import LlmoptError, RecipeError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.torch import load
from tests import models
from tests.gguf_files import llama_cpp_logits
from tests.verbs.conftest import difference
from tests.verbs.test_gguf import converted, make_model, types

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random llama in bfloat16."""
    folder = make_model(tmp_path, hidden_size=64, intermediate_size=64)
    rewrite(folder, {"": torch.bfloat16})
    return folder


def rewrite(folder: Path, dtypes: dict[str, Any], change: Any = None) -> None:
    """Give the tensors whose names hold these words the dtypes; the last that fits."""
    tensors = load_file(folder / "model.safetensors")
    for word, dtype in dtypes.items():
        for name in [name for name in tensors if word in name]:
            fresh = torch.randn(tensors[name].shape) * 0.02 if word else tensors[name]
            tensors[name] = fresh.to(dtype)
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def errors(made: artifact.Artifact) -> dict[str, float]:
    return {e["name"]: e["error"] for e in made.manifest["ledger"] if not e.get("exact", True)}


def test_every_tensor_keeps_its_dtype(tmp_path: Path, model: Path) -> None:
    rewrite(model, {"up_proj": torch.float32, "q_proj": torch.float16, "1.mlp": torch.float16})
    made = converted(tmp_path, model, exact=True, calibrated=False)
    found = types(made)
    assert found["token_embd.weight"] == found["blk.0.attn_k.weight"] == "BF16"
    assert found["blk.0.ffn_up.weight"] == "F32"
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_up.weight"] == "F16"
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert made.manifest["evidence"]["certificate"]["rounded"] == 0
    there, back = Checkpoint.open(model), Checkpoint.open(made.path)
    for name in there.names:
        assert torch.equal(back.read(name).float(), there.read(name).float()), name
    assert difference(model, made.path) == 0.0
    # and llama.cpp computes with the mix
    path = made.path / "model.gguf"
    tokens = [int(token) for token in models.tokens()[0][:16]]
    ours = load(model, dtype="float32").logits(torch.tensor([tokens]))[0]
    assert float((llama_cpp_logits(path, tokens) - ours).norm() / ours.norm()) < 1e-2
    # a file of mixed types is kept as it is, too
    source = shutil.move(path, tmp_path / "mixed.gguf")
    shutil.rmtree(tmp_path / "out")
    again = converted(tmp_path, Path(source), exact=True, calibrated=False)
    assert types(again) == found


def test_experts_of_several_dtypes_share_one_that_holds_all(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    shutil.rmtree(folder)
    models.save_with_bytes(folder, "qwen3_moe")
    rewrite(folder, {"": torch.bfloat16, "experts.1.": torch.float16})
    made = converted(tmp_path, folder, exact=True, calibrated=False)
    assert types(made)["blk.0.ffn_up_exps.weight"] == "F32"
    assert difference(folder, made.path) == 0.0


def test_what_float32_does_not_hold_is_rounded_and_said(tmp_path: Path, model: Path) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        for name in (UP, "model.norm.weight"):
            tensors[name] = torch.randn(tensors[name].shape, dtype=torch.float64)
        tensors["model.layers.0.mlp.gate_proj.weight"] = torch.ones(64, 64, dtype=torch.float64)

    rewrite(model, {}, widen)
    made = converted(tmp_path, model, calibrated=False)
    assert types(made)["blk.0.ffn_up.weight"] == types(made)["blk.0.ffn_gate.weight"] == "F32"
    assert errors(made).keys() == {UP, "model.norm.weight"}
    assert all(0 < error < 1e-6 for error in errors(made).values())
    with pytest.raises(RequestError, match="is not exact in the file, which holds F32"):
        converted(tmp_path / "exact", model, exact=True, calibrated=False)


def test_bfloat16_in_float16_goes_by_the_values(tmp_path: Path, model: Path) -> None:
    """Small values lose digits there, large ones have no place at all."""

    def set_all(value: float) -> None:
        rewrite(model, {}, lambda tensors: [t.fill_(value) for t in tensors.values()])

    set_all(0.75)
    made = converted(tmp_path, model, preset="F16", exact=True, calibrated=False)
    assert errors(made) == {}
    set_all(1.0078125 * 2**-20)
    with pytest.raises(RequestError, match="is not exact in the file, which holds F16"):
        converted(tmp_path / "exact", model, preset="F16", exact=True, calibrated=False)
    made = converted(tmp_path / "small", model, preset="F16", calibrated=False)
    assert UP in errors(made)
    set_all(1e30)
    with pytest.raises(LlmoptError, match="too large for F16"):
        converted(tmp_path / "large", model, preset="F16", calibrated=False)


@pytest.mark.parametrize(("dtype", "preset"), [("float32", "BF16"), ("float16", "BF16")])
def test_exact_refuses_fewer_digits_in_the_plan(
    tmp_path: Path, model: Path, dtype: str, preset: str
) -> None:
    rewrite(model, {"up_proj": getattr(torch, dtype)})
    with pytest.raises(RecipeError, match=rf"{UP} cannot .* values are rounded to {preset}"):
        converted(tmp_path, model, preset=preset, exact=True, calibrated=False)
