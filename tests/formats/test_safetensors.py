"""Reading tensors with pread, writing them in parts and laying them out as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmopt.errors import LlmoptError
from llmopt.formats.safetensors import (
    DTYPE_NAMES,
    TORCH_DTYPES,
    ShardWriter,
    natural_key,
    read_tensor,
    write_file,
)
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.tensor_header import DTYPE_BYTES
from tests import models

#: an odd number of bytes before wider elements, a scalar, nothing at all, a transposed view
MIXED = {
    "x.1": torch.arange(3, dtype=torch.uint8),
    "x.10": torch.arange(5, dtype=torch.bfloat16),
    "x.2": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


def test_every_dtype_is_known_on_both_sides() -> None:
    assert TORCH_DTYPES.keys() == DTYPE_BYTES.keys()
    assert all(dtype.itemsize == DTYPE_BYTES[name] for name, dtype in TORCH_DTYPES.items())
    assert len(DTYPE_NAMES) == len(TORCH_DTYPES)


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in MIXED.items()}, tmp_path / "a.safetensors")
    headers = read_file_headers(tmp_path / "a.safetensors")
    same({name: read_tensor(header) for name, header in headers.items()}, MIXED)


def test_the_library_reads_what_we_wrote(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", MIXED, {"format": "pt"})
    same(load_file(tmp_path / "a.safetensors"), MIXED)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_numbers_in_names_sort_as_numbers() -> None:
    assert sorted(["x.10.b", "x.2.b", "x.a", "x.2.a"], key=natural_key) == [
        "x.2.a",
        "x.2.b",
        "x.10.b",
        "x.a",
    ]


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
    assert writer.parts() == ["first", "second"]
    writer.clear()
    assert list((tmp_path / "parts").iterdir()) == []
