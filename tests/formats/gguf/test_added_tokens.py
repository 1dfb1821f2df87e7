"""Added tokens, wherever they are named: as transformers has them, and as llama.cpp cuts text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.formats.gguf.tokenizer import tokenizer_differences, tokenizer_metadata
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from tests.formats.gguf.small_tokenizers import encoder, pieces
from tests.formats.gguf.test_tokenizer_source import sentencepiece_file
from tests.llama_vocab import LlamaVocab

START, END = "<|im_start|>", "<|im_end|>"
TEXT = f"{START}user{END}"
SIZE = len(pieces()) + 1  # the fixture adds a token
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture
def folder(folders: Any, tmp_path: Path) -> Path:
    """A tokenizer.json with settings that name no tokens."""
    return shutil.copytree(folders["gemma"], tmp_path / "model")


def edit(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | keys), "utf-8")


def in_tokenizer_json(folder: Path, first: int) -> None:
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for number, text in enumerate((START, END), first):
        content["added_tokens"].append({"id": number, "content": text, **FLAGS, "special": True})
    edit(folder / "tokenizer.json", **content)


def in_added_tokens_json(folder: Path, first: int) -> None:
    edit(folder / "added_tokens.json", **{START: first, END: first + 1})


def in_the_settings(folder: Path, first: int) -> None:
    tokens = {
        str(number): {"content": text, **FLAGS, "special": True}
        for number, text in enumerate((START, END), first)
    }
    edit(folder / "tokenizer_config.json", added_tokens_decoder=tokens)


def by_name_alone(folder: Path, _first: int) -> None:
    edit(folder / "special_tokens_map.json", additional_special_tokens=[START, END])


WAYS = [in_tokenizer_json, in_added_tokens_json, in_the_settings, by_name_alone]


@pytest.mark.parametrize("first", [SIZE, SIZE + 20, 300], ids=["next", "behind a gap", "taken"])
@pytest.mark.parametrize("name", WAYS)
def test_ids_are_those_of_transformers(folder: Path, tmp_path: Path, name: Any, first: int) -> None:
    from transformers import AutoTokenizer

    name(folder, first)
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    found = tokenizer_metadata(folder, {"vocab_size": SIZE + 40})
    theirs = AutoTokenizer.from_pretrained(folder)
    wanted = theirs(TEXT)["input_ids"]
    assert wanted[0] == theirs.get_vocab()[START] == SIZE
    assert LlamaVocab(tmp_path / "v.gguf", found)(TEXT, add_special=True) == wanted
    assert found["tokenizer.ggml.tokens"][SIZE : SIZE + 2] == [START, END]
    assert found["tokenizer.ggml.token_type"][SIZE : SIZE + 3] == [3, 3, 5]
    moved = [line for line in tokenizer_differences(folder, {}) if "as its file says" in line]
    assert len(moved) == (0 if first == SIZE or name is by_name_alone else 2)


def test_beside_a_sentencepiece_model(tmp_path: Path) -> None:
    """No tokenizer.json at all, and the last token named by a text that the model has not."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    in_added_tokens_json(tmp_path, len(pieces()))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", eos_token=END)
    found = tokenizer_metadata(tmp_path, {"vocab_size": len(pieces()) + 2, "eos_token_id": 2})
    vocab = LlamaVocab(tmp_path / "v.gguf", found)
    ids = vocab(TEXT)
    assert (ids[0], ids[-1]) == (len(pieces()), len(pieces()) + 1)
    assert "".join(vocab.piece(number) for number in ids[1:-1]) == " user"
    assert found["tokenizer.ggml.eos_token_id"] == len(pieces()) + 1
    assert vocab.ends(len(pieces()) + 1)
    # and back again
    write_tokenizer(found, tmp_path)
    assert encoder(tmp_path)(TEXT) == ids


def test_a_token_is_special_where_a_part_names_it(folder: Path) -> None:
    edit(folder / "added_tokens.json", plain=SIZE, final=SIZE + 1)
    edit(folder / "tokenizer_config.json", eos_token="final")
    found = tokenizer_metadata(folder, {"vocab_size": SIZE + 2})
    assert found["tokenizer.ggml.token_type"][SIZE:] == [4, 3]


def test_a_list_in_the_settings_ends_what_files_of_old_say(folder: Path) -> None:
    in_added_tokens_json(folder, SIZE)
    edit(folder / "special_tokens_map.json", eos_token="<s>")
    config = {"vocab_size": SIZE + 2}
    assert tokenizer_metadata(folder, config)["tokenizer.ggml.eos_token_id"] == 1
    edit(folder / "tokenizer_config.json", added_tokens_decoder={})
    found = tokenizer_metadata(folder, config)
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert found["tokenizer.ggml.tokens"][SIZE] == f"[PAD{SIZE}]"
    assert any("left out" in line for line in tokenizer_differences(folder, config))


def test_tokens_beyond_the_rows_are_left_out_and_said(folder: Path) -> None:
    in_added_tokens_json(folder, SIZE)
    config = {"vocab_size": SIZE + 1}
    assert tokenizer_metadata(folder, config)["tokenizer.ggml.tokens"][SIZE:] == [START]
    assert any(
        line.startswith(f"{END}: left out") for line in tokenizer_differences(folder, config)
    )


@pytest.mark.parametrize("number", ["7", -1, 1.5, None, 1 << 30])
def test_ids_that_are_none(folder: Path, number: Any) -> None:
    edit(folder / "added_tokens.json", **{START: number})
    with pytest.raises(RequestError, match=r"cannot be meant|malformed"):
        tokenizer_metadata(folder, {})
