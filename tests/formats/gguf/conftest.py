"""Tokenizers of every kind, as folders and as metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmopt.formats.gguf.tokenizer import tokenizer_metadata
from tests.formats.gguf.small_tokenizers import DEMO, PREPEND, byte_level, sentencepiece


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tokenizers")
    found = {pre: byte_level(base / pre, pre) for pre in ("gpt-2", "llama-bpe", "qwen2")}
    found["sentencepiece"] = sentencepiece(base / "spm", PREPEND)
    found["gemma"] = sentencepiece(base / "gemma")
    found["plain"] = sentencepiece(base / "plain", drop=40)
    return found | {"demo": DEMO}


@pytest.fixture(scope="session")
def metadata(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    rows = {"vocab_size": 1600}
    return {
        name: tokenizer_metadata(folder, {} if name == "demo" else rows)
        for name, folder in folders.items()
    }
