"""A kind of artifact that llmopt knows only by the tables' lines and the modules in this folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from llmopt import artifact, hub
from llmopt.formats.kind import FileKind
from llmopt.report import card
from llmopt.sources import DEMO_MODEL
from llmopt.specs import KINDS, LOADERS, RUNTIMES
from llmopt.specs.loaders import LOADS
from tests.artifacts import manifest_of, with_card
from tests.cli.conftest import Llmopt, llmopt
from tests.contributing import shown
from tests.toy import kind, table

__all__ = ["llmopt"]

#: mypy holds the module to the Protocol
_KIND: FileKind = kind
FAST = ["--windows", 2, "--length", 64, "--threads", 1, "--no-speed", "--json"]
BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "toy", table.KIND)
    monkeypatch.setitem(RUNTIMES, "toy", table.RUNTIME)
    monkeypatch.setitem(LOADERS, "play", table.LOADER)
    monkeypatch.setitem(LOADS, "toy", table.LOADS)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "toy", replace(table.KIND, native_code=True))


def converted(path: Path) -> Path:
    """The bundled model as a toy file that somebody else wrote."""
    with safe_open(DEMO_MODEL / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {name: (DEMO_MODEL / name).read_text("utf-8") for name in BESIDE})
    return path


def made_here(out: Path) -> Path:
    """The same as an artifact of ours, as a verb with `-o OUT` would leave it."""
    built = out.with_name(f".{out.name}.built")
    built.mkdir()
    for name in BESIDE:
        shutil.copyfile(DEMO_MODEL / name, built / name)
    converted(built / "model.toy")
    manifest = manifest_of(
        artifact.describe_files(built), **with_card(verb="convert", format="toy")
    )
    manifest, text = card.finish(manifest)
    folder = artifact.folder_of(out)
    artifact.publish(built, folder, manifest, {"seconds": 1.0}, text)
    artifact.expose(folder)
    return folder


def test_a_file_is_inspected_and_benched_in_its_runtime(llmopt: Llmopt, tmp_path: Path) -> None:
    converted(tmp_path / "x.toy")
    seen, same = (llmopt("inspect", name, "--json").document for name in ("x.toy", "demo"))
    assert seen["name"] == "x"
    assert seen["summary"]["stored"] == same["summary"]["stored"]
    done = llmopt("bench", "x.toy", "--against", "demo", *FAST)
    assert done.code == 0, done.err
    base, found = done.document["entries"]
    assert (base["runtime"], found["runtime"]) == ("torch", "toy")
    assert (base["format"], found["format"]) == ("hf", "toy")
    assert found["metrics"]["kl.mean"]["value"] < 1e-9
    assert found["metrics"]["size.bytes"] == (tmp_path / "x.toy").stat().st_size
    texts = [llmopt("generate", name, "-p", "import os", "-n", 4).out for name in ("x.toy", "demo")]
    assert texts[0] == texts[1]
    refused = llmopt("generate", "x.toy", "-p", "import os", "--runtime", "torch")
    assert (refused.code, "torch does not run a toy file" in refused.err) == (2, True)


def test_an_artifact_is_verified_pushed_and_has_a_card(llmopt: Llmopt, tmp_path: Path) -> None:
    folder = made_here(tmp_path / "y.toy")
    assert llmopt("verify", "y.toy").code == 0
    assert hub.checked(folder)["format"] == "toy"
    text = (folder / "README.md").read_text("utf-8")
    assert "play PATH/model.toy" in text
    assert f"{(folder / 'model.toy').stat().st_size / 1e6:.2f} MB" in text
    assert llmopt("bench", "y.toy", "--against", "demo", *FAST).code == 0
    with (folder / "model.toy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    done = llmopt("verify", "y.toy")
    assert (done.code, "content differs: model.toy" in done.err) == (1, True)


def test_what_writes_folders_writes_no_file_of_this_name(llmopt: Llmopt) -> None:
    done = llmopt("quantize", "demo", "-o", "x.toy", "--method", "rtn", "--gate", "none")
    assert (done.code, "is a file name, and the result is a folder" in done.err) == (2, True)


def test_another_verb_reads_it(llmopt: Llmopt, tmp_path: Path) -> None:
    converted(tmp_path / "x.toy")
    done = llmopt("quantize", "x.toy", "-o", "w4", "--method", "rtn", "--gate", "none", "--json")
    assert done.code == 0, done.err
    names = {file["path"] for file in artifact.read_manifest(tmp_path / "w4")["files"]}
    assert {"model.safetensors", "tokenizer.json"} <= names
    assert "model.toy" not in names


@pytest.mark.usefixtures("native")
def test_native_code_runs_only_where_it_is_trusted(llmopt: Llmopt, tmp_path: Path) -> None:
    converted(tmp_path / "x.toy")
    asked = ["generate", "x.toy", "-p", "import os", "-n", 1]
    for command in (asked, ["bench", "x.toy", "--against", "demo", *FAST]):
        refused = llmopt(*command)
        assert (refused.code, "native code that was not made here" in refused.err) == (2, True)
    assert llmopt("inspect", "x.toy").code == 0  # which runs nothing of it
    trusted = llmopt("trust", "x.toy")
    assert (trusted.code, "sha256:" in trusted.out) == (0, True)
    assert llmopt(*asked).code == 0
    with (tmp_path / "x.toy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert llmopt(*asked).code == 2


@pytest.mark.usefixtures("native")
def test_native_code_that_was_made_here_runs_here(
    llmopt: Llmopt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_here(tmp_path / "y.toy")
    asked = ["generate", "y.toy", "-p", "import os", "-n", 1]
    assert llmopt(*asked).code == 0
    (folder / "more.so").write_bytes(b"not in the manifest")
    assert llmopt(*asked).code == 2
    (folder / "more.so").unlink()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another user"))
    assert llmopt(*asked).code == 2


def test_what_is_no_native_code_needs_no_trust(llmopt: Llmopt, tmp_path: Path) -> None:
    converted(tmp_path / "x.toy")
    done = llmopt("trust", "x.toy")
    assert (done.code, "has no native code" in done.err) == (2, True)


def test_contributing_shows_what_is_here() -> None:
    found = dict(shown("Adding an artifact kind"))
    assert sorted(found) == [f"tests/toy/{name}.py" for name in ("kind", "runtime", "table")]
    for path, text in found.items():
        assert (Path(__file__).parents[2] / path).read_text("utf-8") == text, path
