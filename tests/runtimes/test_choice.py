"""Which runtime runs what."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.runtimes import choice
from llmopt.runtimes.choice import computing_threads, open_engine, runtime_for


@pytest.mark.parametrize("installed", [True, False])
def test_gguf_runs_in_llama_cpp_where_it_is_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = importlib.util.find_spec("torch") if installed else None
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda _name: found)
    assert runtime_for("auto", "gguf") == ("llama.cpp" if installed else "torch")
    assert runtime_for("auto", "gptq") == runtime_for("auto", None) == "torch"
    assert runtime_for("torch", "gguf") == "torch"
    assert runtime_for("llama.cpp", "gguf") == "llama.cpp"


def test_what_a_runtime_cannot_run() -> None:
    with pytest.raises(RequestError, match=r"llama\.cpp does not run format gptq"):
        runtime_for("llama.cpp", "gptq")
    with pytest.raises(RequestError, match="does not run a plain checkpoint") as caught:
        runtime_for("llama.cpp", None)
    assert caught.value.hint == "--runtime torch"


def test_a_file_says_what_llama_cpp_computes_in(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="in the types that the file has"):
        open_engine("llama.cpp", tmp_path, device="cpu", dtype="bfloat16")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with computing_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with computing_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
