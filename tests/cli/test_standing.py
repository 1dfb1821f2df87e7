"""What stands at -o, --html and in a run's folder: never replaced without a word, never lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmopt import pipeline
from llmopt.artifact import read_manifest
from llmopt.report import page
from tests import models
from tests.cli.conftest import Llmopt, Ran

EVALUATION = ["--windows", 2, "--length", 16]


@pytest.fixture
def quantize(llmopt: Llmopt, tmp_path: Path) -> Any:
    """quantize("w4", ...) quantizes a tiny model in tmp_path."""
    models.save_with_tokenizer(tmp_path / "m")
    usual = ["--method", "rtn", "--group-size", 32, "--device", "cpu"]

    def call(out: object, *more: object) -> Ran:
        gate = [] if "--gate" in more else ["--gate", "none"]
        return llmopt("quantize", "m", "-o", out, *usual, *gate, *more)

    return call


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_finished_artifact_is_replaced_only_when_asked(quantize: Any, tmp_path: Path) -> None:
    assert quantize("w4").code == 0
    before = listing(tmp_path / "w4")
    done = quantize("w4", "--bits", 8)
    assert done.code == 2
    assert "made in another way: quantize of m with grid int4 (now int8)" in done.err
    assert "--overwrite replaces it" in done.err
    assert listing(tmp_path / "w4") == before
    assert quantize("w4").code == 0  # the same again needs no word
    (tmp_path / "w4" / "model.safetensors").unlink()
    assert quantize("w4").code == 0  # nor does mending it
    assert quantize("w4", "--bits", 8, "--overwrite").code == 0
    assert read_manifest(tmp_path / "w4")["settings"]["grid"] == "int8"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "w4"]


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub/x", "config.json", "README.md"])
def test_a_users_files_survive_even_overwrite(quantize: Any, tmp_path: Path, name: str) -> None:
    assert quantize("w4").code == 0
    (tmp_path / "w4" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "w4" / name).write_text("mine")
    before = listing(tmp_path)
    done = quantize("w4", "--bits", 8, "--overwrite")
    assert done.code == 2
    assert name in done.err
    assert "move them away" in done.err
    assert listing(tmp_path) == before


def test_places_that_cannot_be_published_to(quantize: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for out, says in (
        ("link", "is a link to real"), ("gone", "is a link to nowhere"), ("loop", "is a link"),
        ("file", "is a file"), ("file/out", "is a file, not a folder"), ("gone/out", "nowhere"),
        (".", "there already"), ("..", "there already"), ("", "there already"),
        ("m", "is the input model"), ("m/", "is the input model"), ("m/out", "lies inside"),
        ("m/deep/out", "lies inside"), ("n" * 250, "too long"), (tmp_path, "holds the input"),
    ):  # fmt: skip
        done = quantize(out)
        assert done.code == 2, (out, done.err)
        assert says in done.err
        assert len([line for line in done.err.splitlines() if line.startswith("error:")]) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert quantize("real/").code == 0  # an empty folder's place may be taken
    done = quantize("real/out")
    assert (done.code, "lies inside the artifact" in done.err) == (2, True)


def test_a_run_inside_its_model_is_refused(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save_with_tokenizer(tmp_path / "m")
    (tmp_path / "r.yaml").write_text(
        "version: 1\nmodel: m\nsteps: [{id: q, quantize: {method: rtn, group_size: 32}}]\n"
    )
    before = sorted(tmp_path.rglob("*"))
    done = llmopt("run", "r.yaml", "-o", "m/runs")
    assert (done.code, "lies inside the input m" in done.err) == (2, True), done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_device_that_is_not_there_takes_no_work(
    quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    class Killed:
        @staticmethod
        def run(work: Any) -> None:
            (work.state / "part").write_text("hours of work")
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "load", lambda _: Killed)
        assert quantize("w4").code == 130
    (work,) = tmp_path.glob(".w4.llmopt-*")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for more in (["--device", "cuda"], ["--device", "cuda", "--bits", 8]):
        done = quantize("w4", *more)
        assert (done.code, "no GPU" in done.err) == (2, True)
        assert (work / "state" / "part").read_text() == "hours of work"
    assert quantize("w4").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "w4"]


def bench(llmopt: Llmopt, *more: object) -> Any:
    return llmopt("bench", "m", *EVALUATION, "--no-speed", "--device", "cpu", *more)


def test_a_page_of_somebody_else_is_refused_before_anything_is_measured(
    llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save_with_tokenizer(tmp_path / "m")
    assert bench(llmopt, "-o", "scores", "--html", "own.html").code == 0
    (tmp_path / "theirs.html").write_text("<html>mine</html>")
    own = (tmp_path / "own.html").read_text()
    (tmp_path / "edited.html").write_text(own.replace("<body", "<body class='mine'"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run", lambda *_: pytest.fail("measured"))
        for html, says in (
            ("theirs.html", "not a report as llmopt wrote it"),
            ("edited.html", "not a report as llmopt wrote it"),
            ("folder", "is a folder"),
            ("pipe.html", "is no file"),
            ("theirs.html/x.html", "is a file, not a folder"),
            ("m/x.html", "a file more would change"),
            ("scores/x.html", "a file more would change"),
            ("new/x.html", "a file more would change"),
        ):
            done = bench(llmopt, "-o", "new", "--html", html)
            assert (done.code, says in done.err) == (2, True), done.err
    assert (tmp_path / "theirs.html").read_text() == "<html>mine</html>"
    assert bench(llmopt, "--html", "own.html").code == 0
    assert bench(llmopt, "--html", "theirs.html", "--overwrite").code == 0
    for name in ("own.html", "theirs.html"):
        page.check(tmp_path / name, hint="")  # whole, and ours
    for name in ("r.html", "r.md"):
        (tmp_path / name).write_text("mine")
        done = llmopt("report", "scores", "-o", name)
        assert (done.code, "--overwrite" in done.err) == (2, True)
        assert (tmp_path / name).read_text() == "mine"
        assert llmopt("report", "scores", "-o", name, "--overwrite").code == 0
        assert llmopt("report", "scores", "-o", name).code == 0


RECIPE = """
version: 1
model: m
data: {evaluation: {windows: 2, length: 16}}
steps:
  - {id: q, quantize: {method: rtn, group_size: 32, gate: 'kl.mean < 1e-9'}}
  - {id: later, convert: {from: q, to: hf}}
  - {id: other, quantize: {method: rtn, group_size: 32, grid: int8, gate: []}}
  - {id: score, bench: {from: [q, other], speed: false}}
  - {id: all, bench: {from: [later, other], speed: false}}
"""


def test_a_failed_gate_refuses_what_builds_on_it_and_the_summary_says_so(
    llmopt: Llmopt, tmp_path: Path
) -> None:
    models.save_with_tokenizer(tmp_path / "m")
    (tmp_path / "r.yaml").write_text(RECIPE)
    for _ in range(2):  # from a cache it is the same
        done = llmopt("run", "r.yaml", "-o", "out", "--device", "cpu")
        assert done.code == 3, done.err
        assert "later: refused: it builds on q, which failed its quality gate: kl.mean" in done.out
        assert "all: refused: it needs later, which is refused" in done.out
        assert "2 refused" in done.err
        assert "out/other: gptq" in done.out
        assert (tmp_path / "out" / "report.html").is_file()
        assert not (tmp_path / "out" / "later").exists()
    found = llmopt("run", "r.yaml", "-o", "out", "--json", "--device", "cpu")
    assert found.code == 3
    document, _ = json.JSONDecoder().raw_decode(found.out)
    refused = {step["step"]: step["refused"] for step in document["steps"] if "refused" in step}
    assert refused.keys() == {"later", "all"}
    (tmp_path / "r.yaml").write_text(RECIPE.replace("'kl.mean < 1e-9'", "[]"))
    done = llmopt("run", "r.yaml", "-o", "out", "--device", "cpu")
    assert done.code == 0, done.err
    assert "the verdict of its former gate is lifted" in done.err
    assert llmopt("verify", "out/q").code == 0
    (tmp_path / "out" / "report.html").write_text("mine")
    done = llmopt("run", "r.yaml", "-o", "out", "--device", "cpu")
    assert (done.code, "report.html exists" in done.err) == (2, True)


def test_a_model_that_failed_its_gate_is_not_built_upon(llmopt: Llmopt, quantize: Any) -> None:
    assert quantize("w4", "--gate", "kl.mean < 1e-9").code == 3
    done = llmopt("convert", "w4", "-o", "plain", "--to", "hf")
    assert done.code == 3
    assert "plain was not run: it builds on model, which failed its quality gate" in done.err


def test_verify_prints_the_digest_to_keep_and_compares(
    llmopt: Llmopt, quantize: Any, tmp_path: Path
) -> None:
    quantize("w4")
    seal = llmopt("verify", "w4", "--json").document["manifest_digest"]
    assert seal in llmopt("verify", "w4").out
    assert llmopt("verify", "w4", "--digest", seal).code == 0
    path = tmp_path / "w4" / "llmopt.json"
    text = path.read_text()
    path.write_text(text.replace('"method": "rtn"', '"method": "gptq"'))
    for command in (["verify", "w4"], ["inspect", "w4"], ["report", "w4"], ["bench", "w4"]):
        done = llmopt(*command)
        assert done.code in (1, 2)
        assert "llmopt.json was changed" in done.err
    path.write_text(text)
    quantize("w4", "--gate", "kl.mean < 100")  # a verdict goes into the manifest
    done = llmopt("verify", "w4", "--digest", seal)
    assert (done.code, "digest is sha256:" in done.err) == (1, True)
    assert llmopt("verify", "w4", "--digest", seal[:20]).code == 2


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": 2}', '{"schema": 1}'])
def test_a_manifest_that_is_none_is_one_sentence_everywhere(
    llmopt: Llmopt, quantize: Any, tmp_path: Path, content: str
) -> None:
    quantize("w4")
    (tmp_path / "w4" / "llmopt.json").write_text(content)
    for command in (
        ["verify", "w4"], ["inspect", "w4"], ["report", "w4"], ["push", "w4", "a/b"],
        ["bench", "w4"], ["convert", "w4", "-o", "x", "--to", "hf"], ["generate", "w4", "-p", "x"],
    ):  # fmt: skip
        done = llmopt(*command)
        if command[0] != "generate":
            assert done.code == 2, (command, done.err)
            assert "llmopt.json" in done.err
        assert "bug" not in done.err
    assert quantize("w4").code == 2
