"""Tokenizers from GGUF metadata back to Hugging Face files."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.formats.gguf.tokenizer import tokenizer_differences, tokenizer_metadata
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from tests.formats.gguf.small_tokenizers import (
    COMPARED,
    differing,
    encoder,
    with_special,
)
from tests.llama_vocab import LlamaVocab
from tests.mixed_text import mixed_lines


class TestBack:
    @pytest.mark.parametrize("name", COMPARED)
    def test_a_gguf_is_a_full_tokenizer_again(
        self, name: str, metadata: Any, tmp_path: Path
    ) -> None:
        write_tokenizer(metadata[name], tmp_path)
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        lines = mixed_lines(300)
        assert differing(encoder(tmp_path), vocab, lines + with_special(lines)) == []
        rows = {"vocab_size": len(metadata[name]["tokenizer.ggml.tokens"])}
        again = tokenizer_metadata(tmp_path, rows)
        for key, value in metadata[name].items():
            if key == "tokenizer.ggml.scores":  # only their order counts
                continue
            assert again[key] == value, key

    def test_transformers_loads_it(self, metadata: Any, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        found = metadata["llama-bpe"] | {"tokenizer.chat_template": "{{ bos_token }}hello"}
        write_tokenizer(found, tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        for line in mixed_lines(100):
            assert loaded(line)["input_ids"] == vocab(line, add_special=True)
        assert (loaded.bos_token, loaded.eos_token) == ("<|first|>", "<|end|>")
        assert (
            loaded.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
            == "<|first|>hello"
        )
        ids = loaded("Hello  world, it's", add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids) == "Hello  world, it's"
        config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows it
        generation = json.loads((tmp_path / "generation_config.json").read_text("utf-8"))
        assert generation == {"bos_token_id": 1, "eos_token_id": 0}

    def test_phi_3_strips_behind_special_tokens(self, metadata: Any, tmp_path: Path) -> None:
        found = metadata["sentencepiece"] | {"general.name": "Phi-3 mini"}
        tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
        found["tokenizer.ggml.tokens"] = [*tokens, "<|endoftext|>"]  # llama.cpp expects it there
        found["tokenizer.ggml.token_type"] = [*types, 3]
        found["tokenizer.ggml.scores"] = [*found["tokenizer.ggml.scores"], 0.0]
        write_tokenizer(found, tmp_path)
        vocab = LlamaVocab(tmp_path / "v.gguf", found, name="Phi-3 mini")
        text = "one</s>  \n two"
        assert encoder(tmp_path)(text) == vocab(text)
        assert tokenizer_differences(tmp_path, {}) == [
            "white space beside special tokens is not stripped"
        ]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"tokenizer.ggml.tokens": []}, "no tokenizer"),
            ({"tokenizer.ggml.tokens": ["a", "a"]}, "same text"),
            ({"tokenizer.ggml.tokens": ["a", "b" * 5000]}, "over 1024 characters"),
            ({"tokenizer.ggml.tokens": "ab"}, "not a list of str"),
            ({"tokenizer.ggml.token_type": [1]}, "no entry for every token"),
            ({"tokenizer.ggml.merges": ["ab"]}, "not two parts"),
            ({"tokenizer.ggml.merges": [1]}, "not a list of str"),
            ({"tokenizer.ggml.pre": "kimi-k2"}, "'kimi-k2' of this GGUF file is not known"),
            ({"tokenizer.ggml.model": "rwkv"}, "no counterpart of llama.cpp's tokenizer 'rwkv'"),
            ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores has no entry"),
            *(
                (
                    {"tokenizer.ggml.model": model, "tokenizer.ggml.scores": [score] * 2000},
                    "scores has a number that is not finite",
                )
                for model, score in (("llama", math.nan), ("t5", math.inf), ("t5", -math.inf))
            ),
        ],
    )
    def test_broken_metadata_is_refused(
        self, change: dict[str, Any], words: str, metadata: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError, match=words):
            write_tokenizer(metadata["gpt-2"] | change, tmp_path)

    @pytest.mark.parametrize("charsmap", ["abc", 5, [1.5], [256], [-129], [True], ["a"]])
    def test_replacements_that_are_no_bytes_are_refused(
        self, charsmap: Any, metadata: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError, match="precompiled_charsmap is not a list of bytes"):
            write_tokenizer(_unigram(metadata, charsmap), tmp_path)

    @pytest.mark.parametrize("charsmap", [bytes([1, 254]), [1, 254], [1, -2]])
    def test_replacements_are_bytes_of_any_sign(
        self, charsmap: Any, metadata: Any, tmp_path: Path
    ) -> None:
        write_tokenizer(_unigram(metadata, charsmap), tmp_path)
        content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
        (found,) = [
            step["precompiled_charsmap"]
            for step in content["normalizer"]["normalizers"]
            if step["type"] == "Precompiled"
        ]
        assert base64.b64decode(found) == bytes([1, 254])


def _unigram(metadata: Any, charsmap: Any) -> dict[str, Any]:
    """A tokenizer whose text is replaced before it is cut."""
    return metadata["sentencepiece"] | {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.precompiled_charsmap": charsmap,
    }
