"""Text that does not go with a model: beyond its context, its rows, or without a tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RecipeError
from llmopt.planner.texts import Texts
from llmopt.recipe import from_data
from tests import models
from tests.cli.conftest import Llmopt

CPU = ("--device", "cpu")
SMALL = (*CPU, "--group-size", 32)
TEXT = "How vexingly quick daft zebras jump! "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 400)
    (tmp_path / "held.txt").write_text("Sphinx of black quartz, judge my vow. " * 400)
    return tmp_path


def test_a_length_that_was_typed_fits_the_context_or_is_refused(llmopt: Llmopt, text: Path) -> None:
    models.save_with_tokenizer(text / "model")
    calibrated = ("quantize", "model", "-o", "out", "--calibration", "text.txt", *SMALL)
    measured = ("bench", "model", "--evaluation", "held.txt", "--windows", 2, *CPU)
    for command in (calibrated, measured):
        done = llmopt(*command, "--length", 65)
        assert done.code == 2
        assert "65 tokens a sequence do not fit the model's context of 64" in done.err
        assert done.err.count("error: ") == 1
    assert not (text / "out").exists()


def test_a_length_by_default_is_cut_to_the_context_and_said(llmopt: Llmopt, text: Path) -> None:
    models.save_with_tokenizer(text / "model")
    done = llmopt(
        "quantize", "model", "-o", "out", "--calibration", "text.txt", "--sequences", 4,
        "--gate", "none", *SMALL,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "calibrated on 64 tokens a sequence, the model's context" in done.out
    manifest = json.loads((text / "out" / "llmopt.json").read_text())
    assert manifest["corpus"]["length"] == 64
    assert manifest["corpus"]["cut_from"] == 512
    step = {"id": "w4", "quantize": {"group_size": 32, "gate": []}}
    data = {"calibration": {"source": "text.txt", "sequences": 4}}
    recipe = {"version": 1, "name": "r", "model": "model", "data": data, "steps": [step]}
    (text / "r.yaml").write_text(json.dumps(recipe))
    assert "64 tokens" in llmopt("plan", "r.yaml").out
    planned = llmopt("plan", "r.yaml", "--json").document[0]["settings"]["calibration"]
    assert (planned["length"], planned["cut_from"]) == (64, 512)


def test_speed_is_measured_within_the_context_and_it_is_said(llmopt: Llmopt, text: Path) -> None:
    models.save_with_tokenizer(text / "model")
    step = {"id": "s", "bench": {"from": ["model"], "against": None}}
    data = {"evaluation": {"source": "held.txt", "windows": 2}}
    recipe = {"version": 1, "name": "r", "model": "model", "data": data, "steps": [step]}
    (text / "r.yaml").write_text(json.dumps(recipe))
    (note,) = llmopt("plan", "r.yaml", "--json").document[0]["notes"]
    assert "speed is that of 32 new tokens" in note
    done = llmopt("run", "r.yaml", "-o", "out", *CPU)
    assert done.code == 0, done.err
    assert "speed is that of 32 new tokens" in done.err
    step["bench"] = {"new_tokens": 64}
    (text / "r.yaml").write_text(json.dumps(recipe))
    done = llmopt("plan", "r.yaml")
    assert done.code == 2
    assert "64 tokens after a prompt do not fit the model's context of 64" in done.err
    step["bench"] = {"new_tokens": 64, "speed": False}
    (text / "r.yaml").write_text(json.dumps(recipe))
    assert llmopt("plan", "r.yaml").code == 0


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3", "text_config": {"max_position_embeddings": 64}},
        {"model_type": "gpt2", "n_positions": 64},
        {"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": {"factor": 8.0}},
    ],
)
def test_the_context_is_found_wherever_it_stands(config: dict[str, Any]) -> None:
    step = {"id": "s", "bench": {"from": ["model"]}}
    for length, fits in ((64, True), (65, False)):
        data = {"evaluation": {"length": length, "windows": 2}}
        recipe = {"version": 1, "name": "r", "model": "demo", "data": data, "steps": [step]}
        recipe_, source = from_data(recipe)
        texts = Texts(recipe_, config)
        if fits:
            assert texts.evaluation(None, source).length == 64
            continue
        with pytest.raises(RecipeError, match="65 tokens a sequence do not fit"):
            texts.evaluation(None, source)


def test_no_tokenizer_is_refused_before_work_where_there_is_text(
    llmopt: Llmopt, text: Path
) -> None:
    models.save(text / "model")
    for command in (
        ("quantize", "model", "-o", "out", "--calibration", "text.txt", *SMALL),
        ("quantize", "model", "-o", "out", "--method", "rtn", *SMALL),
        ("bench", "model", "--evaluation", "held.txt", *CPU),
        ("convert", "model", "-o", "m.dat", "--to", "imatrix", "--calibration", "text.txt"),
        ("inspect", "model", "--sensitivity", "--calibration", "text.txt"),
    ):
        done = llmopt(*command)
        assert done.code == 2, (command, done.out)
        assert "there is no tokenizer in" in done.err
        assert done.err.count("error: ") == 1
    assert {path.name for path in text.iterdir()} == {"model", "text.txt", "held.txt"}


def test_no_tokenizer_is_said_where_there_is_no_text(llmopt: Llmopt, text: Path) -> None:
    models.save(text / "model")
    quantized = llmopt("quantize", "model", "-o", "w4", "--method", "rtn", "--gate", "none", *SMALL)
    converted = llmopt("convert", "w4", "-o", "awq", "--to", "awq", *CPU)
    for done, name in ((quantized, "w4"), (converted, "awq")):
        assert done.code == 0, done.err
        assert "no tokenizer came with the model" in done.out
        card = (text / name / "README.md").read_text()
        assert "No tokenizer came with the model." in card
        assert "generate PATH" not in card
        assert "vllm serve" not in card


def test_ids_beyond_the_rows_are_refused_with_both_numbers(llmopt: Llmopt, text: Path) -> None:
    models.save_with_tokenizer(text / "model", vocab_size=64)
    for command in (
        ("quantize", "model", "-o", "out", "--calibration", "text.txt", *SMALL),
        ("bench", "model", "--evaluation", "text.txt", "--windows", 2, *CPU),
        ("generate", "model", "-p", TEXT, "-n", 2, *CPU),
    ):
        length = () if command[0] == "generate" else ("--length", 16)
        done = llmopt(*command, *length)
        assert done.code == 2, (command, done.err)
        assert re.search(r"token id 9[0-9] is outside", done.err)
        assert "64" in done.err
        assert done.err.count("error: ") == 1
    assert not (text / "out").exists()


def test_a_model_whose_gate_finds_such_ids_is_written_without_one(
    llmopt: Llmopt, text: Path
) -> None:
    models.save_with_bytes(text / "model", vocab_size=100)
    asked = ("convert", "model", "-o", "out.gguf", "--to", "gguf:Q4_0", *CPU)
    refused = llmopt(*asked)
    assert refused.code == 2
    assert re.search(r"token id \d+ is outside the model's vocabulary of 100", refused.err)
    assert "or take no gate (--gate none)" in refused.err
    assert not (text / "out.gguf").exists()
    done = llmopt(*asked, "--gate", "none")
    assert done.code == 0, done.err
    assert re.search(r"\d+ pieces from id 100 on: left out", done.out)
