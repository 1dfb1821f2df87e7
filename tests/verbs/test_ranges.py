"""Weights that are too large or too small for a format's scales: refused by name, never clipped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import pipeline, planner
from llmopt.errors import RequestError
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.recipe import from_data
from llmopt.step import RunOptions
from llmopt.verbs.shared.records import RoundingErrors, ratio
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import quantized

UP = "model.layers.1.mlp.up_proj"
LARGE = f"{UP}: the weights are too large for scales in float16"
SMALL = f"{UP}: the weights are too small for scales in float16"


def scaled(model: Path, factor: float, rows: slice = slice(None)) -> Path:
    """A model of bfloat16 weights, one of which is larger or smaller by a factor."""
    tensors = {n: t.bfloat16() for n, t in load_file(model / "model.safetensors").items()}
    tensors[f"{UP}.weight"][rows] *= factor
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("factor", [1e7, 1e30, 1e-9, 1e-30])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rtn"},
        {"method": "gptq"},
        {"method": "quantease"},
        {"method": "rtn", "transform": "awq"},
        {"method": "rtn", "grid": "int8", "format": "compressed-tensors", "group_size": -1},
        {"method": "rtn", "grid": "int8", "format": "bitsandbytes-int8", "group_size": -1},
    ],
    ids=str,
)
def test_float16_scales(settings: dict[str, Any], factor: float, make: Any, tmp_path: Path) -> None:
    model = scaled(make("qwen3"), factor)
    with pytest.raises(RequestError, match=LARGE if factor > 1 else SMALL):
        quantized(tmp_path, model, **settings)
    assert not (tmp_path / "out" / "q").exists()


@pytest.mark.parametrize("factor", [1e7, 1e12, 1e-9, 1e-30])
@pytest.mark.parametrize(
    "settings",
    [
        {"grid": "fp8", "format": "compressed-tensors", "group_size": -1},
        {"grid": "nf4", "format": "bitsandbytes-nf4", "group_size": 64},
    ],
    ids=str,
)
def test_float32_scales_hold_them(
    settings: dict[str, Any], factor: float, make: Any, tmp_path: Path
) -> None:
    model = scaled(make("qwen3", intermediate_size=128), factor)
    ledger = quantized(tmp_path, model, method="rtn", **settings).manifest["ledger"]
    errors = [entry["error"] for entry in ledger if "quantized" in entry["actions"]]
    assert len(errors) == 14
    assert 0 < max(errors) < 0.15
    assert min(errors) > 0.01


def test_a_row_of_tiny_weights_does_no_harm(make: Any, tmp_path: Path) -> None:
    model = scaled(make("qwen3"), 1e-12, slice(3, 4))
    done = quantized(tmp_path, model, method="rtn")
    assert all(entry["error"] < 0.2 for entry in done.manifest["ledger"] if entry.get("error"))


@pytest.mark.parametrize("to", ["gptq", "awq", "compressed-tensors"])
def test_conversions_of_plain_weights(to: str, make: Any, tmp_path: Path) -> None:
    model = scaled(make("qwen3"), 1e7)
    step = {"id": "c", "convert": {"to": to, "group_size": 32}}
    plan = planner.plan(
        *from_data({"version": 1, "model": str(model), "steps": [step]}), tmp_path / "out"
    )
    with pytest.raises(RequestError, match=LARGE):
        pipeline.run(plan, RunOptions("cpu", overwrite=True), Log())


@pytest.mark.parametrize(
    ("to", "factor", "says"),
    [
        ("F16", 1e7, "the weights are too large for F16"),
        ("Q8_0", 1e8, "the weights are too large for Q8_0"),
        ("Q4_0", 1e-9, "nothing is left of the weights"),
        ("F16", 1e-12, "nothing is left of the weights"),
    ],
)
def test_gguf_types(to: str, factor: float, says: str, tmp_path: Path) -> None:
    models.save_with_bytes(tmp_path / "model", "qwen3")
    model = scaled(tmp_path / "model", factor)
    step = {"id": "c", "convert": {"to": "gguf", "preset": to, "gate": []}}
    plan = planner.plan(
        *from_data({"version": 1, "model": str(model), "steps": [step]}), tmp_path / "out"
    )
    with pytest.raises(RequestError, match=rf"{UP}[^,]*: {says}"):
        pipeline.run(plan, RunOptions("cpu", overwrite=True), Log())


def test_errors_are_numbers_whatever_the_size() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for factor in (1e-37, 1e-25, 1.0, 1e25, 1e37):
        large = weight * factor
        errors = RoundingErrors()
        errors.add(large * 1.125, large)
        assert errors.record()["error"] == pytest.approx(0.125, rel=1e-4)
    errors = RoundingErrors()
    errors.add(torch.zeros(2, 2), torch.ones(2, 2))
    with pytest.raises(RequestError, match="nothing is left"):
        errors.record()
    with pytest.raises(Exception, match="no number"):
        ratio(math.inf, math.inf)


def test_losses_that_are_known_are_taken_where_float32_holds_them() -> None:
    """They stand for what they say of the outputs, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 32, generator=generator)
    statistics = InputStatistics.empty(32, InputMoments(hessian=True))
    statistics.add(torch.randn(64, 32, generator=generator))
    for size, taken in ((1.0, True), (1e-25, False)):
        values, before = weight * (1.125 * size), weight * size
        found = {}
        for times in (None, 1.0, 4.0):
            errors = RoundingErrors(statistics)
            known = None if times is None else times * statistics.losses(values - before)
            errors.add(values, before, known)
            found[times] = errors.record()
        assert found[1.0] == pytest.approx(found[None], rel=1e-4)
        ratio_of_outputs = 2.0 if taken else 1.0  # of square roots
        assert found[4.0]["output_error"] == pytest.approx(
            ratio_of_outputs * found[None]["output_error"], rel=1e-4
        )
        assert found[4.0]["error"] == found[None]["error"]
