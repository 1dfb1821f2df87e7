"""A config.json that no model can be made of: one sentence, and the exit code of a bad request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmopt.sources import resolve
from tests.cli.conftest import Llmopt

_OLD = {"rope_parameters": None, "rope_theta": 10000.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(resolve("demo").folder, tmp_path / "bad")
    return tmp_path / "bad"


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "bad", "-o", "x.gguf", "--to", "gguf"],
        ["quantize", "bad", "-o", "x", "--method", "rtn", "--gate", "none"],
    ],
    ids=["gguf", "quantize"],
)
@pytest.mark.parametrize(
    "changes",
    [
        {**_OLD, "rope_scaling": {"type": "linear"}},
        {**_OLD, "rope_scaling": {"rope_type": "llama3"}},
        {**_OLD, "rope_scaling": {"rope_type": "yarn", "factor": "four"}},
        {"num_attention_heads": 0},
        {"rms_norm_eps": None},
    ],
    ids=["linear", "llama3", "yarn", "heads", "eps"],
)
def test_it_is_named(
    llmopt: Llmopt, folder: Path, command: list[str], changes: dict[str, Any]
) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    given = {key: value for key, value in config.items() if value or key not in _OLD}
    (folder / "config.json").write_text(json.dumps(given), "utf-8")
    done = llmopt(*command)
    assert done.code == 2, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "config.json" in errors[0]
