"""Tokenizers in other files than tokenizer.json: SentencePiece, vocab and merges, tiktoken."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.formats.gguf.bytelevel import BYTE_TO_CHARACTER
from llmopt.formats.gguf.sentencepiece import read_sentencepiece
from llmopt.formats.gguf.tokenizer import tokenizer_metadata
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from tests.formats.gguf.small_tokenizers import differing, encoder, pieces
from tests.llama_vocab import LlamaVocab
from tests.mixed_text import mixed_lines


def message(*fields: tuple[int, Any]) -> bytes:
    """A protocol buffer message of ints, floats, strings and messages."""

    def varint(number: int) -> bytes:
        number &= (1 << 64) - 1
        groups = bytearray()
        while True:
            number, low = number >> 7, number & 127
            groups.append(low | (128 if number else 0))
            if not number:
                return bytes(groups)

    def encoded() -> Iterator[bytes]:
        for number, value in fields:
            if isinstance(value, int):
                yield varint(number << 3) + varint(int(value))
            elif isinstance(value, float):
                yield varint(number << 3 | 5) + struct.pack("<f", value)
            else:
                data = value.encode() if isinstance(value, str) else value
                yield varint(number << 3 | 2) + varint(len(data)) + data

    return b"".join(encoded())


def sentencepiece_file(kind: int = 2) -> bytes:
    known = [(1, message((1, text), (2, score), (3, k))) for text, score, k in pieces()]
    trainer = message((3, kind), (35, True), (40, 0), (41, 1), (42, 2), (43, -1))
    return message(*known, (2, trainer), (3, message((1, "identity"), (3, True), (4, False))))


class TestOtherFiles:
    def test_sentencepiece_model(self, folders: Any, metadata: Any, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
        found = tokenizer_metadata(tmp_path, {})
        assert found["tokenizer.ggml.add_bos_token"] is True
        assert found["tokenizer.ggml.scores"] == [score for _, score, _ in pieces()]
        assert found["tokenizer.ggml.token_type"] == [kind for _, _, kind in pieces()]
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        lines = tuple(line for line in mixed_lines(300) if "\n\n" not in line)
        assert differing(encoder(folders["sentencepiece"]), vocab, lines) == []
        assert vocab("", add_special=True) == [1]

    def test_scores_of_the_model_beside_tokenizer_json(self, folders: Any, tmp_path: Path) -> None:
        folder = shutil.copytree(folders["sentencepiece"], tmp_path / "model")
        (folder / "tokenizer.model").write_bytes(sentencepiece_file())
        scores = tokenizer_metadata(folder, {})["tokenizer.ggml.scores"]
        assert scores[: len(pieces())] == [score for _, score, _ in pieces()]

    def test_broken_sentencepiece_models(self, tmp_path: Path) -> None:
        whole = sentencepiece_file()
        path = tmp_path / "tokenizer.model"
        for data in (b"", whole[:-5], b"\x0a\xff\xff\xff\xff\xff", b"\xff" * 40, whole[1:]):
            path.write_bytes(data)
            with pytest.raises(RequestError, match="SentencePiece model"):
                read_sentencepiece(path)
        path.write_bytes(sentencepiece_file(kind=4))
        with pytest.raises(RequestError, match="words or characters"):
            read_sentencepiece(path)

    def test_vocab_and_merges(self, folders: Any, metadata: Any, tmp_path: Path) -> None:
        content = json.loads((folders["gpt-2"] / "tokenizer.json").read_text("utf-8"))
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
        with pytest.raises(RequestError, match="does not say how to split words"):
            tokenizer_metadata(tmp_path, {})
        settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        found = tokenizer_metadata(tmp_path, {})
        for key in ("pre", "merges", "eos_token_id"):
            key = f"tokenizer.ggml.{key}"
            assert found[key] == metadata["gpt-2"][key]
        assert found["tokenizer.ggml.token_type"][0] == 3  # as the settings name it

    def test_tiktoken(self, folders: Any, tmp_path: Path) -> None:
        content = json.loads((folders["qwen2"] / "tokenizer.json").read_text("utf-8"))
        byte_of = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
        words = sorted(content["model"]["vocab"].items(), key=lambda item: item[1])
        special = {"<|end|>", "<|first|>"}
        ranked = [bytes(byte_of[c] for c in word) for word, _ in words if word not in special]
        lines = [base64.b64encode(word) + f" {i}".encode() for i, word in enumerate(ranked)]
        (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(RequestError, match="does not say how to split words"):
            tokenizer_metadata(tmp_path, {"model_type": "unheard"})
        found = tokenizer_metadata(tmp_path, {"model_type": "qwen"})
        assert found["tokenizer.ggml.pre"] == "qwen2"
        merges = [" ".join(pair) for pair in content["model"]["merges"]]
        assert found["tokenizer.ggml.merges"] == merges
        write_tokenizer(found, tmp_path)
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        assert differing(encoder(tmp_path), vocab, mixed_lines(100)) == []
