"""GGUF files in the commands that run models: in llama.cpp, and in torch."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert 0 < found["kl"]["mean"]["value"] < 1e-5  # llama.cpp rounds activations to float16
    assert done.document["speed"].keys() == {"model", "f16.gguf"}
    assert "in llama.cpp" in (tmp_path / "r.html").read_text("utf-8")
    in_torch = llmopt("bench", "f16.gguf", *FAST, "--no-speed", "--runtime", "torch")
    assert in_torch.document["entries"][1]["runtime"] == "torch"
    assert in_torch.document["entries"][1]["kl"]["mean"]["value"] < 1e-9


def test_both_runtimes_generate_the_same_text(llmopt: Llmopt) -> None:
    assert llmopt("convert", "demo", "-o", "f32.gguf", "--to", "gguf:F32").code == 0
    arguments = ["generate", "f32.gguf", "-p", "import os", "-n", 12]
    texts = [llmopt(*arguments, "--runtime", r, "--dtype", "auto") for r in ("auto", "torch")]
    assert texts[0].code == 0, texts[0].err
    assert texts[0].out == texts[1].out
    assert texts[0].err == ""


def test_what_cannot_run_is_refused(llmopt: Llmopt) -> None:
    done = llmopt("bench", "demo", *FAST, "--runtime", "llama.cpp")
    assert done.code == 2
    assert "llama.cpp does not run a plain checkpoint" in done.err
    done = llmopt("bench", "demo", "--runtime", "lama.cpp")
    assert done.code == 2
    assert "did you mean 'llama.cpp'" in done.err
