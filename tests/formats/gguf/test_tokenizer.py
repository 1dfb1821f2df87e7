"""Tokenizers between Hugging Face and GGUF: the same ids in llama.cpp and in Hugging Face."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from llmopt.errors import RequestError
from llmopt.formats.gguf.bytelevel import BYTE_TO_CHARACTER
from llmopt.formats.gguf.pretokenizers import PRE_TOKENIZERS, tokenizer_json_of
from llmopt.formats.gguf.tokenizer import tokenizer_differences, tokenizer_metadata
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from tests.formats.gguf.small_tokenizers import (
    COMPARED,
    PREPEND,
    byte_level,
    differing,
    encoder,
    save,
    sentencepiece,
    with_special,
)
from tests.llama_vocab import LlamaVocab
from tests.mixed_text import mixed_lines

#: what llama.cpp cuts exactly as the regex says
EXACT = [pre.name for pre in PRE_TOKENIZERS if pre.difference is None]


class TestIds:
    @pytest.mark.parametrize("name", COMPARED)
    def test_same_as_hugging_face(
        self, name: str, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        assert tokenizer_differences(folders[name], {}) == []
        assert differing(encoder(folders[name]), vocab, mixed_lines(1500)) == []

    @pytest.mark.slow(part="tokenizers")
    @pytest.mark.parametrize("name", COMPARED)
    def test_same_on_20_000_lines(
        self, name: str, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        assert differing(encoder(folders[name]), vocab, mixed_lines(20_000)) == []

    @pytest.mark.slow(part="tokenizers")
    @pytest.mark.parametrize("pre", [name for name in EXACT if name not in COMPARED])
    def test_the_other_pre_tokenizers(self, pre: str, tmp_path: Path) -> None:
        folder = byte_level(tmp_path / pre, pre)
        found = tokenizer_metadata(folder, {})
        assert found["tokenizer.ggml.pre"] == pre
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        assert differing(encoder(folder), vocab, mixed_lines(5000)) == []

    @pytest.mark.parametrize("name", COMPARED)
    def test_special_tokens_in_the_text(
        self, name: str, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        lines = with_special(mixed_lines(200))
        assert differing(encoder(folders[name]), vocab, lines) == []

        def as_text(text: str) -> list[int]:
            return vocab(text, parse_special=False)

        assert differing(encoder(folders[name], parse_special=False), as_text, lines) == []

    @pytest.mark.parametrize(("name", "first"), [("llama-bpe", 1), ("gpt-2", None), ("demo", None)])
    def test_the_first_token(
        self, name: str, first: int | None, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])

        def added(text: str) -> list[int]:
            return vocab(text, add_special=True)

        assert differing(encoder(folders[name], add_special=True), added, mixed_lines(50)) == []
        assert added("") == ([] if first is None else [first])

    @pytest.mark.parametrize("name", COMPARED)
    def test_pieces_give_the_text_back(self, name: str, metadata: Any, tmp_path: Path) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        text = "def f(x):\n    return x  # two"
        assert "".join(map(vocab.piece, vocab(text))).lstrip(" ") == text


class TestMetadata:
    def test_rows_without_a_token_are_filled(self, metadata: Any) -> None:
        found = metadata["gpt-2"]
        assert len(found["tokenizer.ggml.tokens"]) == 1600
        assert found["tokenizer.ggml.tokens"][-1] == "[PAD1599]"
        assert found["tokenizer.ggml.token_type"][-1] == 5
        assert found["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
        added = found["tokenizer.ggml.tokens"].index("<tool>")
        assert found["tokenizer.ggml.token_type"][added] == 4

    def test_tokens_past_the_rows(self, folders: Any) -> None:
        found = tokenizer_metadata(folders["gpt-2"], {"vocab_size": 1499})
        last = max(
            json.loads((folders["gpt-2"] / "tokenizer.json").read_text())["model"]["vocab"].items(),
            key=lambda item: item[1],
        )[0]
        assert len(found["tokenizer.ggml.tokens"]) == 1499
        assert not [m for m in found["tokenizer.ggml.merges"] if m.replace(" ", "") == last]
        said = tokenizer_differences(folders["gpt-2"], {"vocab_size": 1499})
        assert any(line.startswith("1 pieces from id 1499 on: left out") for line in said)
        rows = {"text_config": {"vocab_size": 1501}}
        assert len(tokenizer_metadata(folders["gpt-2"], rows)["tokenizer.ggml.tokens"]) == 1501
        assert tokenizer_differences(folders["gpt-2"], rows) == [
            "  <x>  : left out, as the model has no row for it"
        ]

    def test_sentencepiece_types_and_scores(self, metadata: Any) -> None:
        found = metadata["sentencepiece"]
        assert found["tokenizer.ggml.model"] == "llama"
        assert found["tokenizer.ggml.add_space_prefix"] is True
        assert metadata["gemma"]["tokenizer.ggml.add_space_prefix"] is False
        assert found["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
        assert found["tokenizer.ggml.unknown_token_id"] == 0
        assert "tokenizer.ggml.merges" not in found
        assert metadata["plain"]["tokenizer.ggml.model"] == "gpt2"  # its merges are incomplete

    def test_special_ids_and_what_ends_generation(self, folders: Any, tmp_path: Path) -> None:
        folder = shutil.copytree(folders["gpt-2"], tmp_path / "model")
        (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7, 1]}', "utf-8")
        (folder / "special_tokens_map.json").write_text('{"pad_token": "<|first|>"}', "utf-8")
        found = tokenizer_metadata(folder, {"bos_token_id": 1, "vocab_size": 1600})
        keys = {k: v for k, v in found.items() if k.endswith("_token_id")}
        assert keys == {
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.eot_token_id": 7,
            "tokenizer.ggml.eom_token_id": 1,
            "tokenizer.ggml.padding_token_id": 1,
        }
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        assert [vocab.ends(token) for token in (0, 1, 7, 8)] == [True, True, True, False]

    def test_chat_templates(self, folders: Any, tmp_path: Path) -> None:
        folder = shutil.copytree(folders["gpt-2"], tmp_path / "model")
        templates = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": templates}), "utf-8"
        )
        found = tokenizer_metadata(folder, {})
        assert found["tokenizer.chat_template"] == "a"
        assert found["tokenizer.chat_template.rag"] == "b"
        assert found["tokenizer.chat_templates"] == ["rag"]
        (folder / "chat_template.jinja").write_text("c", "utf-8")
        found = tokenizer_metadata(folder, {})
        assert found["tokenizer.chat_template"] == "c"
        write_tokenizer(found, tmp_path)
        assert (tmp_path / "chat_template.jinja").read_text("utf-8") == "c"
        other = tmp_path / "additional_chat_templates" / "rag.jinja"
        assert other.read_text("utf-8") == "b"

    def test_a_vocabulary_without_merges(self, tmp_path: Path) -> None:
        vocabulary = {character: i for i, character in enumerate(BYTE_TO_CHARACTER)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        content = json.loads(tokenizer.to_str())
        chain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        content["pre_tokenizer"] = chain | {"trim_offsets": True}
        folder = save(tmp_path / "model", content)
        vocab = LlamaVocab(tmp_path / "v.gguf", tokenizer_metadata(folder, {}))
        assert vocab("a é") == list("a é".encode())
        write_tokenizer(tokenizer_metadata(folder, {}), tmp_path)
        assert encoder(tmp_path)("a é") == list("a é".encode())

    @pytest.mark.parametrize("pre", [p.name for p in PRE_TOKENIZERS])
    def test_every_pre_tokenizer_is_known_again(
        self, pre: str, folders: Any, tmp_path: Path
    ) -> None:
        content = json.loads((folders["gpt-2"] / "tokenizer.json").read_text("utf-8"))
        content["pre_tokenizer"], content["model"]["ignore_merges"] = tokenizer_json_of(pre)
        found = tokenizer_metadata(save(tmp_path / "model", content), {})
        assert found["tokenizer.ggml.pre"] == pre

    def test_spellings_of_one_regex(self, folders: Any, tmp_path: Path) -> None:
        regex = (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )
        content = json.loads((folders["gpt-2"] / "tokenizer.json").read_text("utf-8"))
        split = {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Removed",
            "invert": True,
        }
        bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [split, bytes_only | {"trim_offsets": True}],
        }
        found = tokenizer_metadata(save(tmp_path / "model", content), {})
        assert found["tokenizer.ggml.pre"] == "smaug-bpe"

    def test_falcons_own_chain(self, folders: Any, tmp_path: Path) -> None:
        content = json.loads((folders["gpt-2"] / "tokenizer.json").read_text("utf-8"))
        three = {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "invert": False}
        content["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                {"type": "Digits", "individual_digits": False},
                three | {"behavior": "Isolated"},
            ],
        }
        folder = save(tmp_path / "model", content)
        assert tokenizer_metadata(folder, {})["tokenizer.ggml.pre"] == "falcon"
        assert "since version 9" in tokenizer_differences(folder, {})[0]


def refused(folder: Path, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"] |= change.pop("model", {})
    with pytest.raises(RequestError, match=words):
        tokenizer_metadata(save(tmp_path / "model", content | change), {})


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
                "no space before the text",
            ),
            (
                {
                    "pre_tokenizer": {
                        "type": "Sequence",
                        "pretokenizers": [
                            {
                                "type": "Split",
                                "pattern": {"Regex": "abc+"},
                                "behavior": "Isolated",
                            },
                            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                        ],
                    }
                },
                r"splits as this tokenizer.json does: abc\+",
            ),
            ({"normalizer": {"type": "NFKC"}}, "normalizer NFKC before bytes"),
            ({"model": {"end_of_word_suffix": "</w>"}}, "no end_of_word_suffix"),
            ({"model": {"type": "WordPiece"}}, "WordPiece"),
            (
                {"model": {"ignore_merges": True, "vocab": {"a": 0, "b": 1, "ab": 2}}},
                "ignore_merges",
            ),
            ({"pre_tokenizer": None}, "neither over bytes nor falls back"),
        ],
    )
    def test_byte_level(
        self, change: dict[str, Any], words: str, folders: Any, tmp_path: Path
    ) -> None:
        if "vocab" in change.get("model", {}):
            change = change | {"added_tokens": [], "model": change["model"] | {"merges": []}}
            change["model"]["merges"] = [["a", "b"]]
            change["model"]["vocab"] = change["model"]["vocab"] | {"abc": 3}
        refused(folders["gpt-2"], dict(change), words, tmp_path)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
            ({"normalizer": None}, "turns spaces into ▁"),
            ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer Whitespace"),
            (
                {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "split": True}},
                "merges across spaces",
            ),
        ],
    )
    def test_sentencepiece(
        self, change: dict[str, Any], words: str, folders: Any, tmp_path: Path
    ) -> None:
        refused(folders["sentencepiece"], dict(change), words, tmp_path)

    @pytest.mark.parametrize("number", [-1, 10**20])
    def test_impossible_ids(self, number: int, folders: Any, tmp_path: Path) -> None:
        added = [{"id": number, "content": "x y", "special": True}]
        refused(folders["gpt-2"], {"added_tokens": added}, "cannot be meant", tmp_path)

    def test_merges_that_scores_cannot_say(self, tmp_path: Path) -> None:
        folder = sentencepiece(tmp_path / "model", PREPEND, drop=40)
        with pytest.raises(RequestError, match="make the piece"):
            tokenizer_metadata(folder, {})

    def test_no_tokenizer_and_broken_files(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="there is none"):
            tokenizer_metadata(tmp_path, {})
        for text, words in (
            ("{", "is not readable JSON"),
            ("[]", "not hold a JSON object"),
            ("{}", "no model with a vocabulary"),
            (
                '{"model": {"type": "BPE", "vocab": {}, "merges": [1], "byte_fallback": true}}',
                "malf",
            ),
        ):
            (tmp_path / "tokenizer.json").write_text(text, "utf-8")
            with pytest.raises(RequestError, match=words):
                tokenizer_metadata(tmp_path, {})


class TestDifferences:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"normalizer": {"type": "NFC"}}, "composed form"),
            ({"pre_tokenizer": tokenizer_json_of("gpt-4o")[0]}, "in ASCII only"),
        ],
    )
    def test_byte_level(
        self, change: dict[str, Any], words: str, folders: Any, tmp_path: Path
    ) -> None:
        content = json.loads((folders["gpt-2"] / "tokenizer.json").read_text("utf-8"))
        (found,) = tokenizer_differences(save(tmp_path / "model", content | change), {})
        assert words in found

    def test_metaspace_puts_one_space_in_front(self, folders: Any, tmp_path: Path) -> None:
        content = json.loads((folders["gemma"] / "tokenizer.json").read_text("utf-8"))
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
        content |= {"normalizer": None, "pre_tokenizer": metaspace | {"split": False}}
        folder = save(tmp_path / "model", content)
        assert len(tokenizer_differences(folder, {})) == 1
        vocab = LlamaVocab(tmp_path / "v.gguf", tokenizer_metadata(folder, {}))
        lines = tuple(x for x in mixed_lines(300) if "\n\n" not in x and "<" not in x)
        wrong = differing(encoder(folder), vocab, lines)
        assert wrong == [line for line in lines if line.startswith((" ", "▁"))]
