"""Every ledger that a stage writes: readable by reports and cards, counted alike everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import pipeline, planner
from llmopt.model import ledger
from llmopt.model.results import BenchEntry, parse
from llmopt.recipe import from_data
from llmopt.report import html, markdown
from llmopt.report.comparison import Comparison
from llmopt.report.manifest import Manifest
from llmopt.step import RunOptions
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import TEXT

RTN = {"method": "rtn", "group_size": 32, "gate": []}
CALIBRATED = {"group_size": 32, "gate": []}
INT8 = {"grid": "int8", "format": "compressed-tensors", "group_size": -1, "activations": "int8"}
ROWS = {"grid": "int8", "format": "bitsandbytes-int8", "group_size": -1}
BUDGET = {"target_bpw": 7.0, "candidates": ["int4 g32", "int8 g32"]}
STEPS: dict[str, list[dict[str, Any]]] = {
    "gptq": [{"quantize": CALIBRATED}],
    "awq": [{"quantize": {**CALIBRATED, "method": "awq", "format": "gptq_v2", "symmetric": False}}],
    "skipped": [{"quantize": {**RTN, "overrides": [{"match": "*.v_proj", "skip": True}]}}],
    "head": [{"quantize": {**RTN, "head": True}}],
    "int8": [{"quantize": {**RTN, **INT8}}],
    "int8-rows": [{"quantize": {**RTN, **ROWS}}],
    "budget": [{"quantize": {**CALIBRATED, **BUDGET}}],
    "decoded": [{"quantize": RTN}, {"convert": {"to": "hf", "gate": []}}],
    "moved": [
        {"quantize": {**RTN, "format": "gptq_v2"}},
        {"convert": {"to": "compressed-tensors", "gate": []}},
    ],
    "float16": [{"convert": {"to": "gguf", "dtype": "float16"}}],
    "blocks": [{"convert": {"to": "gguf:Q4_0", "gate": []}}],
    "codes-to-gguf": [{"quantize": RTN}, {"convert": {"to": "gguf", "gate": []}}],
}


def look_ahead(folder: Path) -> None:
    """Layers that predict further tokens, and a bias that llama.cpp has no place for."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["mtp.fc.weight"] = torch.randn(64, 128)
    save_file(tensors, path, {"format": "pt"})


def planned(tmp_path: Path, steps: list[dict[str, Any]], family: str) -> planner.Plan:
    model = tmp_path / "model"
    if not model.exists():
        models.save_with_bytes(model, family)
        look_ahead(model)
        (tmp_path / "text.txt").write_text(TEXT * 40)
    text = {"source": str(tmp_path / "text.txt"), "length": 32}
    data = {
        "version": 1,
        "model": str(model),
        "data": {"calibration": text | {"sequences": 4}, "evaluation": text | {"windows": 2}},
        "steps": [{"id": f"s{i}", **step} for i, step in enumerate(steps)],
    }
    for i, step in enumerate(data["steps"][1:]):
        verb = next(verb for verb in ("quantize", "convert") if verb in step)
        step[verb] = {**step[verb], "from": f"s{i}"}
    return planner.plan(*from_data(data), tmp_path / "out")


@pytest.mark.parametrize("kind", STEPS)
def test_every_ledger_is_read_and_counted_alike(tmp_path: Path, kind: str) -> None:
    family = "gemma3_text" if kind == "blocks" else "qwen3"
    plan = planned(tmp_path, STEPS[kind], family)
    for done in pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results:
        manifest = json.loads(json.dumps(done.artifact.manifest))
        if not manifest["ledger"]:
            continue
        name, digest = done.artifact.name, done.artifact.digest
        entry, made = BenchEntry(name=name, digest=digest), parse(Manifest, manifest, name)
        results = Comparison(None, None, (entry,), {}, {name: made})
        assert html.render(results)
        assert markdown.render(results)
        counts = ledger.count(entry["actions"] for entry in manifest["ledger"])
        assert (
            f"Tensors: {ledger.in_words(counts)}" in (done.artifact.path / "README.md").read_text()
        )
        step = next(step for step in plan.steps if step.id == name)
        plain = [
            tuple(action for action in entry["actions"] if action != "folded") or ("kept",)
            for entry in manifest["ledger"]
        ]
        assert ledger.count(change.actions for change in step.changes) == ledger.count(plain)
        assert kind != "awq" or {"folded", "folded and quantized"} <= counts.keys()
        if manifest["format"] == "gguf":
            assert counts["dropped"] == 1
