"""Separators, bos and chats, on a tokenizer whose ids are bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from llmopt.corpora.source import Corpus
from llmopt.corpora.tokenize import tokenize
from llmopt.errors import RequestError

BOS, EOS = 256, 257
LETTERS = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}

Make = Callable[..., Path]


def ids(text: str) -> list[int]:
    return [LETTERS[letter] for letter in text]


def corpus(*documents: str, rendered: bool = False) -> Corpus:
    return Corpus("made-up", "", documents, rendered)


def test_eos_follows_documents_where_the_tokenizer_adds_nothing(tokenizer_folder: Make) -> None:
    tokens = tokenize(corpus("abcdef", "gh"), tokenizer_folder())
    assert tokens.ids.tolist() == [*ids("abcdef"), EOS, *ids("gh"), EOS]  # past the file's limit 4
    assert tokens.first is None
    assert tokens.name == "made-up"


@pytest.mark.parametrize("config", [{"template": True}, {"add_bos_token": True}])
def test_bos_precedes_documents_where_the_family_has_one(
    tokenizer_folder: Make, config: dict[str, bool]
) -> None:
    tokens = tokenize(corpus("ab", "c"), tokenizer_folder(**config))
    assert tokens.ids.tolist() == [BOS, *ids("ab"), BOS, *ids("c")]
    assert tokens.first == BOS


def test_bos_separates_where_there_is_no_eos(tokenizer_folder: Make) -> None:
    folder = tokenizer_folder(eos_token=None)
    assert tokenize(corpus("a", "b"), folder).ids.tolist() == [*ids("a"), BOS, *ids("b"), BOS]


def test_a_rendered_chat_gets_no_second_bos(tokenizer_folder: Make) -> None:
    folder = tokenizer_folder(template=True)
    tokens = tokenize(corpus("<s>ab</s>", rendered=True), folder)
    assert tokens.ids.tolist() == [BOS, *ids("ab"), EOS]


def test_many_documents_keep_their_order(tokenizer_folder: Make) -> None:
    documents = [chr(97 + i % 26) for i in range(600)]
    tokens = tokenize(corpus(*documents), tokenizer_folder())
    assert tokens.ids[::2].tolist() == [LETTERS[letter] for letter in documents]


def test_ids_are_those_of_transformers(tokenizer_folder: Make) -> None:
    folder = tokenizer_folder(template=True)
    text = "def f(x):\n\treturn x  # é ✓\n"
    theirs = AutoTokenizer.from_pretrained(folder)(text, truncation=False)["input_ids"]
    assert tokenize(corpus(text), folder).ids.tolist() == theirs


def test_vocabulary_and_merges_alone_are_read_by_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    words = ["a", "b", "ab", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(str({w: i for i, w in enumerate(words)}).replace("'", '"'))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert tokenize(corpus("ab", "ba"), tmp_path).ids.tolist() == [2, 3, 1, 0, 3]


def test_a_regex_that_backtracks_without_end(tokenizer_folder: Make) -> None:
    """It panics in Rust, with what is no Exception in Python."""
    folder = tokenizer_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|a)*$"), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(RequestError, match=r"tokenizer\.json: the tokenizer fails on the text"):
        tokenize(corpus("b", "a" * 40 + "b"), folder)


def test_unreadable_tokenizers(tmp_path: Path, tokenizer_folder: Make) -> None:
    with pytest.raises(RequestError, match="no tokenizer that can be read"):
        tokenize(corpus("a"), tmp_path)
    folder = tokenizer_folder()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(RequestError, match=r"tokenizer_config\.json: not valid JSON"):
        tokenize(corpus("a"), folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RequestError, match=r"tokenizer\.json: not a readable tokenizer"):
        tokenize(corpus("a"), folder)
