"""Which runtime runs what."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.specs import CHECKPOINT, runtimes
from llmopt.specs.runtimes import runtime_for


@pytest.mark.parametrize("installed", [True, False])
def test_gguf_runs_in_llama_cpp_where_it_is_installed(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = importlib.util.find_spec("torch") if installed else None
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda _name: found)
    assert runtime_for("auto", "gguf") == ("llama.cpp" if installed else "torch")
    assert runtime_for("auto", CHECKPOINT) == "torch"
    assert runtime_for("torch", "gguf") == "torch"
    assert runtime_for("llama.cpp", "gguf") == "llama.cpp"


def test_what_a_runtime_cannot_run() -> None:
    with pytest.raises(RequestError, match=r"llama\.cpp does not run a Hugging Face") as caught:
        runtime_for("llama.cpp", CHECKPOINT)
    assert caught.value.hint == "--runtime torch"
