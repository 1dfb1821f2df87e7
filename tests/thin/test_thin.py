"""A verb that llmopt knows only by a line in a table and the modules in this folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmopt.artifact import RUN_RECORD, read_manifest
from llmopt.specs import METRICS
from tests.contributing import shown

ROOT = Path(__file__).parents[2]
SETTINGS = ["--layer", "1", "--width", "256"]
TEXT = ["--windows", "4", "--length", "64"]
RECIPE = """
version: 1
name: thinner
model: demo
data: {evaluation: {windows: 4, length: 64}}
steps:
  - id: slim
    thin: {teacher: model, layer: 1, width: 256}
  - id: w4
    quantize: {from: slim, method: rtn, gate: []}
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.thin", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def thin(folder: Path, *words: str, code: int = 0) -> str:
    out, err = (process := start(folder, *words)).communicate(timeout=300)
    assert process.returncode == code, err
    return out if code == 0 else err


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RUN_RECORD
    }


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return found


def test_it_has_a_command_with_flags_and_inputs_by_role(tmp_path: Path) -> None:
    assert "thin " in thin(tmp_path, "--help")
    said = thin(tmp_path, "thin", "--help")
    for words in ("--teacher", "--layer", "--width", "--no-score", "--gate", "--print-recipe"):
        assert words in said
    recipe = thin(tmp_path, "thin", "demo", "-o", "out", *SETTINGS, "--print-recipe")
    assert "thin:" in recipe
    assert "layer: 1" in recipe
    wrong = thin(tmp_path, "thin", "demo", "-o", "out", "--layer", "9", "--width", "8", code=2)
    assert "--layer" in wrong
    assert "the model has 5 layers" in wrong


def test_it_is_planned_from_headers_and_so_is_what_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    steps = json.loads(thin(tmp_path, "plan", "recipe.yaml", "--json"))
    assert [step["step"] for step in steps] == ["slim", "slim.score", "w4"]
    actions = [change["actions"] for change in steps[0]["tensors"]]
    assert actions.count(["dropped"]) == 9
    assert actions.count(["reshaped"]) == 12
    # what is quantized is what will be there: four layers, and their new widths
    quantized = [each for each in steps[2]["tensors"] if each["actions"] == ["quantized"]]
    assert len(quantized) == 4 * 7
    assert [256, 256] in [each["shape"] for each in quantized]
    typo = RECIPE.replace("width", "widht")
    (tmp_path / "typo.yaml").write_text(typo)
    assert "did you mean 'width'?" in thin(tmp_path, "plan", "typo.yaml", code=2)


def test_a_recipe_runs_and_is_measured_and_reported(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    thin(tmp_path, "run", "recipe.yaml", "-o", "out", "--threads", "1")
    slim, score, report = (tmp_path / "out" / n for n in ("slim", "slim.score", "report.html"))
    config = config_of(slim)
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (4, 256)
    manifest = read_manifest(slim)
    assert [parent["role"] for parent in manifest["parents"]] == ["model", "teacher"]
    ledger = {
        entry["name"]: entry for entry in manifest["ledger"] if entry["actions"] != ["dropped"]
    }
    moved = ledger["model.layers.1.mlp.down_proj.weight"]
    assert moved["sources"] == ["model.layers.2.mlp.down_proj.weight"]
    assert (moved["actions"], moved["shape"]) == (["reshaped"], [256, 256])
    assert {tuple(change["key"]) for change in manifest["config_changes"]} == {
        ("num_hidden_layers",), ("intermediate_size",)
    }  # fmt: skip
    results = json.loads((score / "bench.json").read_text("utf-8"))
    (entry,) = [each for each in results["entries"] if not each["is_base"]]
    assert set(entry["metrics"]) <= set(METRICS)
    assert entry["metrics"]["kl.mean"]["value"] > 0
    assert entry["metrics"]["size.ratio"] < 1
    page = report.read_text("utf-8")
    assert "slim" in page
    assert "Reshaped" in page
    again = thin(tmp_path, "run", "recipe.yaml", "-o", "out", "--threads", "1", "--json")
    assert all(step["reused"] for step in json.loads(again)["steps"])
    assert "slim" in thin(tmp_path, "verify", "out/slim")
    assert "thin" in thin(tmp_path, "inspect", "out/slim")


def test_killed_it_goes_on_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    command = ["thin", "demo", "-o", "out", *SETTINGS, *TEXT, "--gate", "kl.mean < 90",
               "--threads", "1", "--quiet"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    thin(whole, *command)
    process = start(killed, *command)
    parts = ".out.llmopt-*/state/parts/*.safetensors"
    while len(list(killed.glob(parts))) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = {path: path.stat().st_mtime_ns for path in killed.glob(parts)}
    assert left
    assert not (killed / "out").exists()
    process = start(killed, *command)
    while process.poll() is None and all(path.exists() for path in left):
        assert all(path.stat().st_mtime_ns == at for path, at in left.items() if path.exists())
        time.sleep(0.05)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert digests(killed) == digests(whole)
    assert read_manifest(killed / "out")["gates"][0]["passed"]


@pytest.mark.parametrize("missing", ["layer", "width"])
def test_what_has_no_default_is_asked_for(missing: str, tmp_path: Path) -> None:
    words = [w for pair in zip(SETTINGS[::2], SETTINGS[1::2], strict=True)
             if pair[0] != f"--{missing}" for w in pair]  # fmt: skip
    assert f"--{missing}" in thin(tmp_path, "thin", "demo", "-o", "out", *words, code=2)


def test_contributing_shows_what_is_here() -> None:
    found = dict(shown("Adding a verb"))
    names = ("plan", "run", "settings", "table")
    assert sorted(found) == [f"tests/thin/{name}.py" for name in names]
    for path, text in found.items():
        assert (ROOT / path).read_text("utf-8") == text, path
