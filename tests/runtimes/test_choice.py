"""How runtimes are started."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmopt.errors import RequestError
from llmopt.runtimes.choice import open_engine


def test_a_file_says_what_llama_cpp_computes_in(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="in the types that the file has"):
        open_engine("llama.cpp", tmp_path, device="cpu", dtype="bfloat16")
