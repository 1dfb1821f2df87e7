"""Parts become shards: what is kept, dealt, linked, and found again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmopt.errors import LlmoptError
from llmopt.formats import headers
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.shards import ShardWriter
from tests import models
from tests.formats.test_safetensors import MIXED, same


def collected(folder: Path, source: Path) -> ShardWriter:
    """A writer with two parts, and one tensor kept from a source file."""
    save_file({"kept": torch.arange(4, dtype=torch.float16)}, source)
    writer = ShardWriter(folder)
    writer.write("second", {k: v for k, v in MIXED.items() if "x" in k})
    writer.write("first", {k: v for k, v in MIXED.items() if "x" not in k}, note="hello")
    writer.keep("renamed", read_file_headers(source)["kept"])
    return writer


def test_parts_survive_and_become_one_file(tmp_path: Path) -> None:
    collected(tmp_path / "parts", tmp_path / "source")
    writer = ShardWriter(tmp_path / "parts")
    assert writer.parts() == ["first", "second"]
    assert writer.read_note("first") == "hello"
    writer.keep("renamed", read_file_headers(tmp_path / "source")["kept"])
    assert writer.finalize(tmp_path) == ["model.safetensors"]
    expected = {**MIXED, "renamed": torch.arange(4, dtype=torch.float16)}
    same(load_file(tmp_path / "model.safetensors"), expected)


def test_shards_fill_up_to_the_limit_and_are_indexed(tmp_path: Path) -> None:
    writer = collected(tmp_path / "parts", tmp_path / "source")
    names = writer.finalize(tmp_path, max_shard_bytes=20)
    *shards, index_name = names
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index_name == "model.safetensors.index.json"
    index = json.loads((tmp_path / index_name).read_text())
    found = {}
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert sum(t.nbytes for t in tensors.values()) <= 24  # one tensor alone may be larger
        assert all(index["weight_map"][name] == shard for name in tensors)
        found |= tensors
    same(found, {**MIXED, "renamed": torch.arange(4, dtype=torch.float16)})
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())


def test_transformers_loads_the_shards(tmp_path: Path) -> None:
    model = models.save(tmp_path)
    writer = ShardWriter(tmp_path / "parts")
    for name, header in read_file_headers(tmp_path / "model.safetensors").items():
        writer.keep(name, header)
    out = tmp_path / "out"
    out.mkdir()
    assert len(writer.finalize(out, max_shard_bytes=100_000)) > 2
    (out / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(out)
    same(loaded.state_dict(), model.state_dict())


def test_the_order_of_writing_does_not_show(tmp_path: Path) -> None:
    one, two = ShardWriter(tmp_path / "1"), ShardWriter(tmp_path / "2")
    for name in MIXED:
        one.write(name, {name: MIXED[name]})
    for name in reversed(MIXED):
        two.write(f"again-{name}", {name: MIXED[name]})
    for writer, folder in ((one, tmp_path / "a"), (two, tmp_path / "b")):
        folder.mkdir()
        writer.finalize(folder)
    first, second = (tmp_path / name / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_tensor_cannot_be_given_twice(tmp_path: Path) -> None:
    writer = collected(tmp_path / "parts", tmp_path / "source")
    header = read_file_headers(tmp_path / "source")["kept"]
    with pytest.raises(LlmoptError, match="renamed was given to the writer twice"):
        writer.keep("renamed", header)
    writer.keep("x.1", header)
    with pytest.raises(LlmoptError, match=r"x\.1 was given to the writer twice"):
        writer.finalize(tmp_path)


def test_an_unfinished_part_does_not_count(tmp_path: Path) -> None:
    writer = collected(tmp_path / "parts", tmp_path / "source")
    (tmp_path / "parts" / "third.safetensors.partial").write_bytes(b"half")
    save_file({"y": torch.ones(1)}, tmp_path / "parts" / "no-note.safetensors")
    assert writer.parts() == ["first", "second"]
    writer.clear()
    assert list((tmp_path / "parts").iterdir()) == []


def blocks(folder: Path) -> ShardWriter:
    """A writer with a large part for each block, and a small one."""
    writer = ShardWriter(folder)
    for index in (2, 10):
        writer.write(f"block-{index}", {f"h.{index}.w": torch.full((100,), float(index))}, "noted")
    writer.write("norm", {"a.norm": torch.ones(3), "h.3.norm": torch.zeros(2)})
    return writer


@pytest.mark.parametrize("linked", [True, False])
def test_large_parts_are_shards_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, linked: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(headers, "LARGE_PART", 400)
    writer, out = blocks(tmp_path / "parts"), tmp_path / "out"
    out.mkdir()
    # what a run that was killed in between has left
    (out / "model-00003-of-00003.safetensors").write_bytes(b"half")
    *names, index = writer.finalize(out, max_shard_bytes=600)
    assert [list(load_file(out / name)) for name in names] == [
        ["a.norm", "h.3.norm"], ["h.2.w"], ["h.10.w"],
    ]  # fmt: skip
    for name, part in ((names[1], "block-2"), (names[2], "block-10")):
        kept = tmp_path / "parts" / f"{part}.safetensors"
        assert (out / name).samefile(kept) == linked
        with safe_open(out / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert json.loads((out / index).read_text()) == {
        "metadata": {"total_size": 820},
        "weight_map": {
            "a.norm": names[0], "h.2.w": names[1], "h.3.norm": names[0], "h.10.w": names[2],
        },
    }  # fmt: skip
    writer.clear()  # and what was published stays
    assert load_file(out / names[1])["h.2.w"].tolist() == [2.0] * 100
