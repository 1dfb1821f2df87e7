"""The quantize step on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmopt import pipeline, planner
from llmopt.artifact import read_manifest
from llmopt.errors import LlmoptError, RecipeError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.recipe import from_data
from llmopt.step import RunOptions
from llmopt.verbs.shared import solving
from tests.test_pipeline import Log
from tests.verbs.conftest import TEXT, difference, lost_in_values, quantized


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": "int2", "format": "gptq_v2", "symmetric": False},
        {"grid": "int3"},
        {"grid": "int4", "act_order": "full"},
        {"grid": "int4", "act_order": "full", "static_groups": True},
        {"grid": "int4", "act_order": "none", "refine": 0, "scale_search": "minmax"},
        {"grid": "int4", "symmetric": False, "group_size": -1},
        {"grid": "int4", "true_sequential": False, "signed_scales": False},
        {"grid": "int8", "head": True},
        {"grid": "int8", "format": "gptq_v2", "group_size": 16},
        {"grid": "int4", "overrides": [{"match": "*.down_proj", "grid": "int8"},
                                       {"match": "*.0.self_attn.*", "skip": True}]},
    ],
    ids=str,
)  # fmt: skip
def test_settings_reach_the_artifact(settings: dict[str, Any], make: Any, tmp_path: Path) -> None:
    model = make("llama")
    done = quantized(tmp_path, model, **settings)
    stored, original = Checkpoint.open(done.path), Checkpoint.open(model)
    limit = {"int2": 0.6, "int3": 0.3, "int4": 0.2, "int8": 0.02}[settings["grid"]]
    for entry in done.manifest["ledger"]:
        if "quantized" in entry["actions"]:
            name = entry["name"].removesuffix(".weight")
            source = name.replace("lm_head", "model.embed_tokens")  # the tiny llama ties them
            weight = original.read(f"{source}.weight")
            error = (decode(stored.read_layer(name)) - weight).norm() / weight.norm()
            assert float(error) == pytest.approx(entry["error"], rel=1e-4)
            assert error < limit
    assert 0 < difference(model, done.path) < 1.5
    config = json.loads((done.path / "quantize_config.json").read_text())
    assert config["checkpoint_format"] == settings.get("format", "gptq")
    # static groups stay those of consecutive columns, whatever the order of rounding
    indexed = settings.get("act_order") == "full" and not settings.get("static_groups")
    assert config["desc_act"] is indexed
    assert config["sym"] is settings.get("symmetric", True)
    assert json.loads((done.path / "config.json").read_text())["quantization_config"] == config


def test_gptq_loses_less_of_the_outputs_than_rtn(make: Any, tmp_path: Path) -> None:
    model = make("llama")
    lost = {}
    for method in ("rtn", "gptq"):
        made = quantized(tmp_path, model, method=method, grid="int3")
        lost[method] = lost_in_values(model, made.path)
        # who rounds to nearest knows E[x^2] of the inputs alone
        known = [e for e in made.manifest["ledger"] if "output_error" in e]
        assert bool(known) is (method == "gptq")
    assert lost["gptq"] < 0.9 * lost["rtn"]


def test_overlapping_texts_are_refused_before_work(make: Any, tmp_path: Path) -> None:
    model = make("llama")
    (tmp_path / "held-out.txt").write_text(TEXT * 30)
    with pytest.raises(LlmoptError, match="is in the calibration text too"):
        quantized(tmp_path, model)
    assert not (tmp_path / "out").exists()


def test_too_little_text_says_how_much_there_is(make: Any, tmp_path: Path) -> None:
    model = make("llama")
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(LlmoptError, match=r"text\.txt has \d+ tokens"):
        quantized(tmp_path, model)


def test_a_weight_that_is_not_a_number_is_named(make: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make("llama")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LlmoptError, match=r"layers\.1\.mlp.*NaN"):
        quantized(tmp_path, model, method="rtn")


def test_the_input_is_never_touched(make: Any, tmp_path: Path) -> None:
    model = make("qwen2")
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    quantized(tmp_path, model)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_no_path_of_the_machine_is_written(make: Any, tmp_path: Path) -> None:
    done = quantized(tmp_path, make("llama"))
    for path in done.path.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    assert read_manifest(done.path)["settings"]["calibration"]["source"] == "text.txt"


def test_pickled_weights_with_permission(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = make("llama")
    expected = quantized(tmp_path, model, method="rtn").digest
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(tensors, model / "pytorch_model.bin")
    recipe = {
        "version": 1, "model": str(model),
        "steps": [{"id": "q", "quantize": {"method": "rtn", "group_size": 32,
                                           "scale_search": "importance", "gate": ["kl.mean < 9"]}}],
        "data": {
            "calibration": {"source": str(tmp_path / "text.txt"), "sequences": 6, "length": 48},
            "evaluation": {"source": str(tmp_path / "held-out.txt"), "windows": 4, "length": 48},
        },
    }  # fmt: skip
    with pytest.raises(RecipeError, match="only pickled weights"):
        planner.plan(*from_data(recipe), tmp_path / "pickled")
    plan = planner.plan(*from_data(recipe), tmp_path / "pickled", allow_pickle=True)
    done = pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[-1].artifact
    assert done.digest == expected
    assert done.manifest["parents"][0]["source"] == model.name


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_rows_in_chunks_give_the_same(
    method: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit where rows are rounded; products of other shapes add in other orders."""
    model = make("llama")
    whole = quantized(tmp_path, model, method=method, head=True)
    tensors, lost = load_file(whole.path / "model.safetensors"), lost_in_values(model, whole.path)
    errors = {e["name"]: e.get("error", 0.0) for e in whole.manifest["ledger"]}
    monkeypatch.setattr(solving, "CHUNK", 640)
    parts = quantized(tmp_path, model, method=method, head=True)
    found = load_file(parts.path / "model.safetensors")
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in tensors.items()}
    if method == "rtn":
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert lost_in_values(model, parts.path) == pytest.approx(lost, rel=0.05)
    for entry in parts.manifest["ledger"]:
        assert entry.get("error", 0.0) == pytest.approx(errors[entry["name"]], rel=0.05)
