"""Which tokens begin and end a text, from whichever file says it, and what llama.cpp does then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.formats.gguf.tokenizer import tokenizer_differences, tokenizer_metadata
from tests.formats.gguf.test_added_tokens import edit
from tests.llama_vocab import LlamaVocab

ROWS = {"vocab_size": 1600}


@pytest.fixture
def folder(folders: Any, tmp_path: Path) -> Path:
    """A tokenizer whose settings name no special tokens."""
    folder = shutil.copytree(folders["gpt-2"], tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    return folder


def ends(found: dict[str, Any]) -> list[int | None]:
    return [found.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]


def test_generation_config_alone_says_what_ends(folder: Path, tmp_path: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[77])
    found = tokenizer_metadata(folder, {**ROWS, "eos_token_id": None})
    assert ends(found) == [77, None, None]
    assert LlamaVocab(tmp_path / "v.gguf", found).ends(77)


def test_order_and_lists(folder: Path, tmp_path: Path) -> None:
    config = {**ROWS, "eos_token_id": [5, 6], "bos_token_id": 9, "text_config": {"pad_token_id": 3}}
    assert ends(tokenizer_metadata(folder, config)) == [5, 6, None]
    edit(folder / "generation_config.json", eos_token_id=[7, 8, 10, 11], bos_token_id=4)
    found = tokenizer_metadata(folder, config)
    assert ends(found) == [7, 8, 10]
    assert found["tokenizer.ggml.bos_token_id"] == 4
    assert found["tokenizer.ggml.padding_token_id"] == 3
    assert any("does not end it" in line for line in tokenizer_differences(folder, config))
    edit(folder / "tokenizer_config.json", eos_token="<|first|>")
    found = tokenizer_metadata(folder, config)
    assert ends(found) == [1, 7, 8]
    vocab = LlamaVocab(tmp_path / "v.gguf", found)
    assert [vocab.ends(number) for number in (1, 7, 8, 5)] == [True, True, True, False]


def test_tokens_that_llama_cpp_knows_need_no_key(folder: Path, tmp_path: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[7, 0])  # 0 is <|end|>
    found = tokenizer_metadata(folder, ROWS)
    assert ends(found) == [7, None, None]
    assert LlamaVocab(tmp_path / "v.gguf", found).ends(0)


@pytest.mark.parametrize("value", [1600, [7, 1600], -5, "2", 2.0, True, [[2]]])
def test_what_ends_must_be_a_token(folder: Path, value: Any) -> None:
    edit(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(RequestError, match=r"which is no token|none of the 1600"):
        tokenizer_metadata(folder, ROWS)


def test_no_token_is_said_in_several_ways(folder: Path) -> None:
    for value in (None, [], -1, [None]):
        edit(folder / "generation_config.json", eos_token_id=value)
        assert ends(tokenizer_metadata(folder, ROWS)) == [None, None, None]


def test_other_parts_without_a_row_are_said(folder: Path) -> None:
    config = {**ROWS, "pad_token_id": 1600}
    assert "tokenizer.ggml.padding_token_id" not in tokenizer_metadata(folder, config)
    assert any("the pad token 1600" in line for line in tokenizer_differences(folder, config))


@pytest.mark.parametrize("first", [None, "<|first|>"])
@pytest.mark.parametrize("last", [None, "<|end|>"])
def test_first_and_last_tokens_are_those_of_the_template(
    folder: Path, tmp_path: Path, first: str | None, last: str | None
) -> None:
    """As in transformers, whatever tokenizer_config.json says besides."""
    from transformers import AutoTokenizer

    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    around = [
        {"SpecialToken": {"id": name, "type_id": 0}} if name else None for name in (first, last)
    ]
    whole = [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]]
    names = {"<|end|>": 0, "<|first|>": 1}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [part for part in whole if part],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()
        },
    }
    edit(folder / "tokenizer.json", **content)
    config = {**ROWS, "eos_token_id": 7}
    for switch in ({}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}):
        edit(folder / "tokenizer_config.json", bos_token="<|first|>", **switch)
        found = tokenizer_metadata(folder, config)
        wanted = AutoTokenizer.from_pretrained(folder)("a")["input_ids"]
        vocab = LlamaVocab(tmp_path / "v.gguf", found)
        assert vocab("a", add_special=True) == wanted
        assert vocab.ends(7)
        said = [line for line in tokenizer_differences(folder, config) if "is not followed" in line]
        assert len(said) == sum(
            value != bool(end) for value, end in zip(switch.values(), (first, last), strict=False)
        )
