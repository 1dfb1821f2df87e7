"""GGUF files in the commands that run models: in llama.cpp, and in torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmopt.formats.gguf.container import read_gguf
from llmopt.specs import runtimes
from llmopt.specs.presets import PRESETS, find_preset
from tests.cli.conftest import Llmopt

pytest.importorskip("llama_cpp")

FAST = ["--windows", 2, "--length", 64, "--threads", 1, "--json"]


def test_a_gguf_file_is_measured_in_llama_cpp_and_in_torch(llmopt: Llmopt, tmp_path: Path) -> None:
    made = llmopt("convert", "demo", "-o", "f16.gguf", "--to", "gguf:F16")
    assert made.code == 0, made.err
    done = llmopt("bench", "f16.gguf", *FAST, "--html", "r.html")
    assert done.code == 0, done.err
    base, found = done.document["entries"]
    assert (base["runtime"], found["runtime"]) == ("torch", "llama.cpp")
    assert found["name"] == "f16.gguf"
    assert (
        0 < found["metrics"]["kl.mean"]["value"] < 1e-5
    )  # llama.cpp rounds activations to float16
    assert done.document["speed"].keys() == {"model", "f16.gguf"}
    assert "in llama.cpp" in (tmp_path / "r.html").read_text("utf-8")
    in_torch = llmopt("bench", "f16.gguf", *FAST, "--no-speed", "--runtime", "torch")
    assert in_torch.document["entries"][1]["runtime"] == "torch"
    assert in_torch.document["entries"][1]["metrics"]["kl.mean"]["value"] < 1e-9


def test_both_runtimes_generate_the_same_text(llmopt: Llmopt) -> None:
    assert llmopt("convert", "demo", "-o", "f32.gguf", "--to", "gguf:F32").code == 0
    arguments = ["generate", "f32.gguf", "-p", "import os", "-n", 12]
    texts = [llmopt(*arguments, "--runtime", r, "--dtype", "auto") for r in ("auto", "torch")]
    assert texts[0].code == 0, texts[0].err
    assert texts[0].out == texts[1].out
    # llama.cpp says nothing by itself
    assert all(line.endswith(" ...") for line in texts[0].err.splitlines())


def test_a_name_and_further_metadata(llmopt: Llmopt, tmp_path: Path) -> None:
    command = ["convert", "demo", "-o", "m.gguf", "--to", "gguf:F16"]
    said = ["--metadata", "general.author=A=B", "--metadata", "my.count=7"]
    made = llmopt(*command, "--name", "Mine", *said)
    assert made.code == 0
    assert made.out.startswith("m.gguf: gguf, ")
    found = read_gguf(tmp_path / "m.gguf").metadata
    assert found["general.name"] == "Mine"
    assert (found["general.author"], found["my.count"]) == ("A=B", 7)
    for wrong, words in (
        ("general.author", "is not KEY=VALUE"),
        ("=x", "is not KEY=VALUE"),
        ("split.count=2", "cannot be set"),
        ("general.name=x", "--name"),
        ("my.key=", "has no text"),
    ):
        done = llmopt(*command, "--metadata", wrong)
        assert done.code == 2
        assert words in done.err
    done = llmopt(*command, "--metadata", "a.b=1", "--metadata", "a.b=2")
    assert (done.code, "a.b is given twice" in done.err) == (2, True)
    done = llmopt("convert", "demo", "-o", "q", "--to", "gptq", "--name", "Mine")
    assert (done.code, "a conversion to gptq has no such setting" in done.err) == (2, True)


def test_what_cannot_run_is_refused(llmopt: Llmopt) -> None:
    done = llmopt("bench", "demo", *FAST, "--runtime", "llama.cpp")
    assert done.code == 2
    assert "llama.cpp does not run a Hugging Face checkpoint" in done.err
    done = llmopt("bench", "demo", "--runtime", "lama.cpp")
    assert done.code == 2
    assert "did you mean 'llama.cpp'" in done.err


@pytest.fixture(scope="module")
def importance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo model."""
    path = tmp_path_factory.mktemp("importance") / "im.gguf"
    text = ["--sequences", "16", "--length", "128"]
    command = [sys.executable, "-m", "llmopt", "convert", "demo", "-o", str(path)]
    subprocess.run([*command, "--to", "imatrix", *text, "--quiet"], check=True)
    return path


@pytest.mark.slow(part="presets")
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_generates(preset: str, importance: Path, llmopt: Llmopt) -> None:
    guided = [] if find_preset(preset).is_plain else ["--imatrix", importance]
    made = llmopt(
        "convert", "demo", "-o", "m.gguf", "--to", f"gguf:{preset}", "--gate", "none", *guided
    )
    assert made.code == 0, made.err
    done = llmopt("generate", "m.gguf", "-p", "import os", "-n", 4, "--runtime", "llama.cpp")
    assert done.code == 0, done.err


def test_feedback_and_importance_run_from_the_command_line(llmopt: Llmopt) -> None:
    text = ["--sequences", 4, "--length", 64, "--calibration", "demo"]
    done = llmopt("convert", "demo", "-o", "g", "--to", "gguf:Q4_0", "--method", "gptq", *text)
    assert done.code == 0, done.err
    assert "KL" in done.out
    again = llmopt("convert", "demo", "-o", "g", "--to", "gguf:Q4_0", "--method", "gptq", *text)
    assert again.code == 0
    assert "done in" not in again.err  # reused


def test_both_forms_of_an_importance_matrix_are_files(llmopt: Llmopt, tmp_path: Path) -> None:
    text = ["--to", "imatrix", "--sequences", 4, "--length", 64]
    for name in ("im.gguf", "im.dat"):
        done = llmopt("convert", "demo", "-o", name, *text)
        assert done.code == 0, done.err
        assert (tmp_path / name).is_file()
        assert "tensors" not in done.out
    guided = llmopt(
        "convert", "demo", "-o", "m.gguf", "--to", "gguf:Q2_K", "--imatrix", "im.dat",
        "--gate", "none",
    )  # fmt: skip
    assert guided.code == 0, guided.err
    assert llmopt("convert", "demo", "-o", "m.dat", "--to", "gguf:F16").code == 2


def test_what_is_asked_of_one_file(llmopt: Llmopt, tmp_path: Path) -> None:
    for more, message in (
        (["--split-size", "1MB"], "several files of 1,000,000 bytes cannot be m.gguf"),
        (["--split-size", "2.6MB", "--target-size", "3.2MB"], "cannot be m.gguf"),
        (["--type", "Q8_0"], "--type: Q8_0 is not PATTERN=TYPE"),
        (["--imatrix", "i", "--calibration", "demo"], "takes the place of calibration text"),
    ):
        to = "gguf" if "--target-size" in more else "gguf:F16"
        done = llmopt("convert", "demo", "-o", "m.gguf", "--to", to, *more)
        assert done.code == 2
        assert message in done.err
        assert ".llmopt" not in done.err
        assert not list(tmp_path.iterdir())
    done = llmopt("convert", "demo", "-o", "m.gguf", "--to", "gguf:F16", "--split-size", "1GB")
    assert done.code == 0, done.err


def test_a_measurement_is_repeated_where_another_runtime_is_found(
    llmopt: Llmopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llmopt("convert", "demo", "-o", "f.gguf", "--to", "gguf:F16").code == 0
    arguments = ["bench", "f.gguf", *FAST, "--no-speed", "-o", "scores"]
    with monkeypatch.context() as patched:
        patched.setattr(runtimes, "_installed", lambda runtime: runtime == "torch")
        first = llmopt(*arguments)
    refused = llmopt(*arguments)
    assert (refused.code, "torch (now llama.cpp)" in refused.err) == (2, True)
    again = llmopt(*arguments, "--overwrite")
    found = [done.document["entries"][1]["runtime"] for done in (first, again)]
    assert found == ["torch", "llama.cpp"]


def test_a_file_of_somebody_else_is_not_overwritten(llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "mine.gguf").write_text("not yours")
    done = llmopt("convert", "demo", "-o", "mine.gguf", "--to", "gguf:F16")
    assert done.code == 2
    assert "not of llmopt's making" in done.err
    assert (tmp_path / "mine.gguf").read_text() == "not yours"
    done = llmopt("quantize", "demo", "-o", "q.gguf", "--method", "rtn")
    assert done.code == 2
    assert "is a file name" in done.err
