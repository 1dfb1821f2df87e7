"""Tokenizers between Hugging Face and GGUF: the same ids in llama.cpp and in Hugging Face."""

from __future__ import annotations

import base64
import functools
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from llmopt import demo
from llmopt.errors import RequestError
from llmopt.formats.gguf.bytelevel import BYTE_TO_CHARACTER
from llmopt.formats.gguf.pretokenizers import PRE_TOKENIZERS, tokenizer_json_of
from llmopt.formats.gguf.sentencepiece import merges_by_score, read_sentencepiece
from llmopt.formats.gguf.tokenizer import tokenizer_differences, tokenizer_metadata
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from tests.llama_vocab import LlamaVocab
from tests.mixed_text import mixed_lines

DEMO = Path(next(iter(demo.__path__))) / "model"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
#: what llama.cpp cuts exactly as the regex says
EXACT = [pre.name for pre in PRE_TOKENIZERS if pre.difference is None]
COMPARED = ["demo", "gpt-2", "llama-bpe", "qwen2", "sentencepiece", "gemma", "plain"]


def save(folder: Path, content: dict[str, Any], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def byte_level(folder: Path, pre: str, size: int = 1500) -> Path:
    """A byte-level BPE trained with one of llama.cpp's pre-tokenizers, with special tokens."""
    chain, whole_words = tokenizer_json_of(pre)
    empty = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": chain}
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    tokenizer.train_from_iterator(
        mixed_lines(1200, seed=1),
        trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            special_tokens=["<|end|>", "<|first|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("  <x>  ")])
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = whole_words
    if pre == "llama-bpe":
        first = {"SpecialToken": {"id": "<|first|>", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|first|>": {"id": "<|first|>", "ids": [1], "tokens": ["<|first|>"]}
            },
        }
    return save(folder, content, eos_token="<|end|>")


@functools.cache
def pieces() -> list[tuple[str, float, int]]:
    """Pieces of a small SentencePiece model: text, score, type."""
    tokenizer = Tokenizer(models.BPE())
    lines = [
        line
        for line in mixed_lines(1500, seed=2)
        if "<" not in line and max(line, default="") < "ʰ"
    ]
    words = ["▁" + word for line in lines for word in line.split()]
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False)
    tokenizer.train_from_iterator([*words, *["▁" * 16] * 50], trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    found = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    found += [(byte, 0.0, 6) for byte in BYTES]
    longest_first = sorted(vocabulary, key=lambda piece: (len(piece) == 1, vocabulary[piece]))
    return found + [(piece, -float(i), 1) for i, piece in enumerate(longest_first)]


def sentencepiece(folder: Path, *steps: dict[str, Any], drop: int = 0) -> Path:
    """A tokenizer.json as transformers makes of a SentencePiece model; `drop` merges left out."""
    known = pieces()
    merges = merges_by_score({text: score for text, score, kind in known if kind == 1})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": i, "content": known[i][0], **flags, "special": True} for i in range(3)]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *special,
            {"id": len(known), "content": "\n\n", **flags, "special": False},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, SPACES]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, (text, _, _) in enumerate(known)},
            "merges": merges[: len(merges) - drop],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }
    return save(
        folder, content, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=False
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tokenizers")
    found = {pre: byte_level(base / pre, pre) for pre in ("gpt-2", "llama-bpe", "qwen2")}
    found["sentencepiece"] = sentencepiece(base / "spm", PREPEND)
    found["gemma"] = sentencepiece(base / "gemma")
    found["plain"] = sentencepiece(base / "plain", drop=40)
    return found | {"demo": DEMO}


@pytest.fixture(scope="module")
def metadata(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    rows = {"vocab_size": 1600}
    return {
        name: tokenizer_metadata(folder, {} if name == "demo" else rows)
        for name, folder in folders.items()
    }


def differing(left: Any, right: Any, lines: tuple[str, ...]) -> list[str]:
    return [line for line in lines if left(line) != right(line)]


def encoder(folder: Path, *, add_special: bool = False, parse_special: bool = True) -> Any:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = not parse_special
    return lambda text: tokenizer.encode(text, add_special_tokens=add_special).ids


def with_special(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Lines with special and added tokens in front, inside and behind."""
    marks = ("<|end|>", "<|first|>", "<tool>", "  <x>  ", "<s>", "</s>", "<unk>", "\n\n")
    marked = []
    for i, line in enumerate(lines):
        mark = marks[i % len(marks)]
        middle = len(line) // 2
        marked.append((mark + line, line[:middle] + mark + line[middle:], line + mark)[i % 3])
    return tuple(marked)


class TestIds:
    @pytest.mark.parametrize("name", COMPARED)
    def test_same_as_hugging_face(
        self, name: str, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        assert tokenizer_differences(folders[name], {}) == []
        assert differing(encoder(folders[name]), vocab, mixed_lines(1500)) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("name", COMPARED)
    def test_same_on_20_000_lines(
        self, name: str, folders: Any, metadata: Any, tmp_path: Path
    ) -> None:
        vocab = LlamaVocab(tmp_path / "v.gguf", metadata[name])
        assert differing(encoder(folders[name]), vocab, mixed_lines(20_000)) == []

    @pytest.mark.slow
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
        ],
    )
    def test_broken_metadata_is_refused(
        self, change: dict[str, Any], words: str, metadata: Any, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError, match=words):
            write_tokenizer(metadata["gpt-2"] | change, tmp_path)


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
        with pytest.raises(RequestError, match="has id 1499, and the model only 1499 rows"):
            tokenizer_metadata(folders["gpt-2"], {"vocab_size": 1499})
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
            "tokenizer.ggml.padding_token_id": 1,
        }
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        assert [vocab.ends(token) for token in (0, 7, 8)] == [True, True, False]

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
