"""--json is one document on stdout, whatever a command does and however it ends."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest

from llmopt import pipeline
from llmopt.cli.commands import summaries
from llmopt.recipe.schema import json_schema
from tests.cli.conftest import Llmopt

RTN = ["--method", "rtn", "--gate", "none"]
FEW = ["--windows", 2, "--length", 64, "--no-speed"]
#: what each command says on success and on each kind of refusal; {"w4"} is there
LINES: list[tuple[list[object], int]] = [
    (["--version"], 2),  # the version is text, and has no --json
    (["quantize", "demo", "-o", "w4", *RTN], 0),
    (["quantize", "demo", "-o", "x", "--print-recipe"], 0),
    (["quantize", "demo", "-o", "x", "--method", "rtn", "--bits", 2, "--gate", "kl.mean < 1e-9"], 3),
    (["quantize", "demo", "-o", "x", "--bits", 5], 2),
    (["quantize", "demo", "-o", "x", "--bits", "five"], 2),
    (["quantize", "demo"], 2),
    (["quantize", "demo", "-o", "x", "--no-such-option"], 2),
    (["convert", "w4", "-o", "a4", "--to", "awq"], 0),
    (["convert", "demo", "-o", "x", "--to", "awq", "--print-recipe"], 0),
    (["convert", "demo", "-o", "x", "--to", "awk"], 2),
    (["bench", "w4", *FEW], 0),
    (["bench", "w4", *FEW, "-o", "b"], 0),
    (["bench", "w4", *FEW, "--gate", "kl.mean < 1e-12"], 3),
    (["bench", "w4", "--print-recipe"], 0),
    (["bench", "./nowhere"], 2),
    (["plan", "demo"], 0),
    (["plan", "demo", "--set", "seed=x"], 2),
    (["run", "r.yaml", "-o", "out"], 0),
    (["run", "gone.yaml"], 2),
    (["inspect", "demo"], 0),
    (["inspect", "w4", "--tensors"], 0),
    (["inspect", "./nowhere"], 2),
    (["verify", "w4"], 0),
    (["verify", "gone"], 2),
    (["push", "gone", "me/gone"], 2),
    (["trust", "demo"], 2),
    (["generate", "demo", "-p", "import os", "-n", 2], 0),
    (["generate", "demo", "-p", ""], 2),
    (["report", "b", "-o", "page.html"], 0),
    (["report", "gone"], 2),
    (["recipes", "list"], 0),
    (["recipes", "show", "demo"], 0),
    (["recipes", "show", "gone"], 2),
    (["recipes", "schema"], 0),
    (["recipes"], 2),
    (["doctor"], 0),
    (["quantise"], 2),
    ([], 2),
]  # fmt: skip


def test_every_command_writes_one_document(
    llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "r.yaml").write_text(
        "version: 1\nmodel: demo\nsteps:\n  - {id: q, quantize: {method: rtn, gate: []}}\n"
    )
    names = {str(line[0]) for line, _ in LINES if line}
    assert names > set(summaries())
    for line, code in LINES:
        done = llmopt(*line, "--json")
        assert done.code == code, (line, done.err)
        document = json.loads(done.out)
        if code == 2:
            assert document["error"]["exit_code"] == 2
            assert document["error"]["message"] == document["errors"][0]["message"] != ""


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, MemoryError, OSError(28, "No space", "x"), ValueError]
)
def test_what_ends_early_writes_one_document_too(
    llmopt: Llmopt, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    done = llmopt("quantize", "demo", "-o", "x", *RTN, "--json")
    assert done.document["error"]["exit_code"] == done.code in (1, 130)


def choices(command: str, key: str) -> list[str]:
    """What the schema allows at a key of a command's step."""
    verb, _, name = key.partition(".")
    definition = json_schema()["$defs"].get(f"{verb.title()}Settings", {})
    found = definition.get("properties", {}).get(name, {})
    return [c for option in found.get("anyOf", [found]) for c in option.get("enum", ())]


def test_the_schema_offers_what_is_taken() -> None:
    from llmopt.verbs.convert.settings import ConvertSettings

    assert choices("convert", "convert.method") == ["rtn", "gptq"]
    for name, info in ConvertSettings.model_fields.items():
        taken = [
            a for a in typing.get_args(info.annotation) if typing.get_origin(a) is typing.Literal
        ]
        for literal in taken:
            assert choices("convert", f"convert.{name}") == list(typing.get_args(literal))
