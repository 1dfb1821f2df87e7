"""How runtimes are started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.processor import computing_threads
from llmopt.runtimes.choice import open_engine


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
