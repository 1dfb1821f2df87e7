"""Tiny models with text to quantize them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmopt import pipeline, planner
from llmopt.artifact import Artifact
from llmopt.formats.checkpoint import Checkpoint
from llmopt.recipe import from_data
from llmopt.runtimes.torch import load
from llmopt.step import RunOptions
from tests import models
from tests.test_pipeline import Log

TEXT = "The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "
HELD_OUT = "Sphinx of black quartz, judge my vow! How vexingly quick daft zebras jump. "


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """make("gpt2") -> a folder with a tiny model and a tokenizer of one token a character."""

    def build(family: str, **settings: Any) -> Path:
        folder = tmp_path / f"model-{family}"
        models.save_with_tokenizer(folder, family, **settings)
        (tmp_path / "text.txt").write_text(TEXT * 40)
        (tmp_path / "held-out.txt").write_text(HELD_OUT * 20)
        return folder

    return build


def quantized(tmp_path: Path, model: Path, **settings: Any) -> Artifact:
    """Run one quantize step, without a gate unless asked for one."""
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(tmp_path / "text.txt"), "sequences": 6, "length": 48},
            "evaluation": {"source": str(tmp_path / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": [{"id": "q", "quantize": {"group_size": 32, "gate": [], **settings}}],
    }
    plan = planner.plan(*from_data(data), tmp_path / "out")
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[0].artifact


def difference(first: Path, second: Path) -> float:
    """Relative difference of two models' logits on a few random tokens."""
    tokens = models.tokens()
    one, other = (load(p, dtype="float32").logits(tokens) for p in (first, second))
    return float((one - other).norm() / one.norm())


def lost_in_values(original: Path, made: Path) -> float:
    """What rounding costs in the outputs of the first block's value projection, on TEXT."""
    name, inputs = "model.layers.0.self_attn.v_proj", []
    model = AutoModelForCausalLM.from_pretrained(original)
    model.get_submodule(name).register_forward_pre_hook(lambda _, x: inputs.append(x[0][0]))
    with torch.no_grad():
        model(AutoTokenizer.from_pretrained(original)(TEXT, return_tensors="pt").input_ids)
    before, after = (Checkpoint.open(path).weight(name) for path in (original, made))
    return float((inputs[0] @ (after - before).T).square().sum())
