"""The GGUF container: what is read, and what is refused."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import first_file, read_gguf
from llmopt.formats.gguf.hf_config import hf_config
from llmopt.formats.gguf.restore import restore
from tests.gguf_files import FOR_LLAMA_CPP, write_model
from tests.models import save


def write(path: Path, tokens: int = 4) -> Path:
    """A small file by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int64("a.i64", -(1 << 40))
    writer.add_float32("a.f32", 0.5)
    writer.add_bool("a.bool", False)
    writer.add_array("a.bytes", b"\x00\xff")
    writer.add_array("a.tokens", [f"tok{index}" for index in range(tokens)])
    writer.add_array("a.scores", [float(index) for index in range(tokens)])
    writer.add_tensor("x.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor(
        "y.weight", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType(8)
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "a.gguf"))
    assert (found.version, found.alignment, found.architecture) == (3, 32, "llama")
    assert {key: found.metadata[key] for key in found.metadata if key.startswith("a.")} == {
        "a.u8": 200,
        "a.i64": -(1 << 40),
        "a.f32": 0.5,
        "a.bool": False,
        "a.bytes": b"\x00\xff",
        "a.tokens": ["tok0", "tok1", "tok2", "tok3"],
        "a.scores": [0.0, 1.0, 2.0, 3.0],
    }
    x, y = found.tensors["x.weight"], found.tensors["y.weight"]
    assert (x.type_id, x.shape, x.end - x.start) == ("F32", (3, 4), 48)
    assert (y.type_id, y.shape, y.end - y.start) == ("Q8_0", (2, 32), 68)
    with x.file.open("rb") as file:
        file.seek(x.start)
        assert struct.unpack("<12f", file.read(48)) == tuple(range(12))


def test_a_large_vocabulary_is_read_fast(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", tokens=150_000)
    began = time.process_time()
    assert len(read_gguf(path).metadata["a.tokens"]) == 150_000
    assert time.process_time() - began < 2


def edited(raw: bytes, offset: int, form: str, value: int) -> bytes:
    return raw[:offset] + struct.pack(form, value) + raw[offset + struct.calcsize(form) :]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda raw: b"GGML" + raw[4:], "does not begin with GGUF"),
        (lambda raw: b"", "truncated"),
        (lambda raw: edited(raw, 4, "<I", 1), "version 1"),
        (lambda raw: edited(raw, 4, "<I", 99), "version 99"),
        (lambda raw: edited(raw, 4, ">I", 3), "big-endian"),
        (lambda raw: edited(raw, 8, "<Q", 1 << 60), "claims 1152921504606846976 tensors"),
        (lambda raw: edited(raw, 16, "<Q", 1 << 60), "1152921504606846976 keys"),
        (lambda raw: edited(raw, 24, "<Q", 1 << 40), "claims 1099511627776 bytes for a key"),
        (lambda raw: raw[:-40], "is truncated: tensor y.weight"),
        (lambda raw: raw[:100], "2 tensors and 8 keys in 100 bytes"),
        (lambda raw: raw[:330], "is truncated: 330 bytes are fewer"),
        (lambda raw: raw.replace(b"y.weight", b"x.weight"), "holds tensor x.weight twice"),
        (lambda raw: raw.replace(b"a.i64", b"a.f32"), "has the key 'a.f32' twice"),
        (lambda raw: raw.replace(b"a.i64", b"a.\xff64"), "not UTF-8"),
        (lambda raw: of(raw, b"y.weight", 4, "<Q", 33), "blocks of 32 (Q8_0) do not fill"),
        (lambda raw: of(raw, b"y.weight", 4, "<Q", 0), "the shape [2, 0]"),
        (lambda raw: of(raw, b"y.weight", 0, "<I", 5), "5 dimensions"),
        (lambda raw: of(raw, b"y.weight", 20, "<I", 4), "type 4, which is not known"),
        (lambda raw: of(raw, b"y.weight", 24, "<Q", 0), "x.weight and y.weight overlap"),
        (lambda raw: of(raw, b"y.weight", 24, "<Q", 33), "unaligned"),
        (lambda raw: of(raw, b"y.weight", 24, "<Q", 1 << 62), "truncated"),
        (lambda raw: of(raw, b"a.tokens", 4, "<I", 9), "unknown type 9"),
        (lambda raw: of(raw, b"a.tokens", 4, "<I", 77), "unknown type 77"),
        (lambda raw: of(raw, b"a.tokens", 8, "<Q", 1 << 50), "elements for 'a.tokens'"),
        (lambda raw: of(raw, b"a.scores", 8, "<Q", 1 << 22), "elements for 'a.scores'"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: object, fault: str) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(RequestError) as caught:
        read_gguf(path)
    assert fault in caught.value.message
    assert "\n" not in caught.value.message


def of(raw: bytes, name: bytes, offset: int, form: str, value: int) -> bytes:
    """Change what stands `offset` bytes behind a key or a tensor's name."""
    return edited(raw, raw.index(name) + len(name) + offset, form, value)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """A flipped byte or more, a lost end, or a number that lies."""
    kind = chance.randrange(4)
    header = raw.index(b"output_norm") + 100
    if kind == 0:
        return raw[: chance.randrange(len(raw))]
    changed = bytearray(raw)
    for _ in range(chance.randrange(1, 6) if kind == 1 else 1):
        place = chance.randrange(header)
        if kind == 1:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            huge = chance.choice([0, 1, 255, 1 << 31, (1 << 64) - 1, chance.randrange(1 << 64)])
            changed[place : place + 8] = struct.pack("<Q", huge)
        else:
            changed[place : place + 4] = struct.pack("<I", chance.randrange(16))
    return bytes(changed)


def read(path: Path) -> tuple[str, int]:
    """What is said against a file, nothing where it is read as a model; the memory that it took."""
    fault = ""
    tracemalloc.start()
    try:
        found = read_gguf(path)
        restore(found, hf_config(found))
    except RequestError as error:
        fault = error.message
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return fault, peak


def test_mutated_files_are_refused_or_read(tmp_path: Path) -> None:
    save(tmp_path / "m", "llama", num_hidden_layers=1, hidden_size=32, head_dim=8)
    path = tmp_path / "a.gguf"
    write_model(tmp_path / "m", path)
    raw, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        path.write_bytes(mutated(raw, chance))
        fault, peak = read(path)
        refused += bool(fault)
        assert "\n" not in fault
        assert peak < 8 << 20
    assert 100 < refused < 200  # a changed letter of a name or digit of a number is no damage


ODD = ["x", -1, 0, 3, 1 << 40, 0.0, float("nan"), 1e300, [], ["a"], [0, 0]]


@pytest.mark.parametrize("family", ["phi3", "gemma3_text", "falcon"])
def test_odd_values_are_refused_or_read(tmp_path: Path, family: str) -> None:
    changes = FOR_LLAMA_CPP.get(family, {})
    save(tmp_path / "m", family, num_hidden_layers=1, layer_types=None, **changes)
    write_model(tmp_path / "m", tmp_path / "a.gguf")
    found, refused = read_gguf(tmp_path / "a.gguf"), 0
    for key in found.metadata:
        for odd in ODD:
            changed = replace(found, metadata={**found.metadata, key: odd})
            try:
                restore(changed, hf_config(changed))
            except RequestError:
                refused += 1
    assert refused > 50


def split(folder: Path) -> list[Path]:
    save(folder / "m", "llama")
    return write_model(folder / "m", folder / "a.gguf", max_file_bytes=100_000)


def test_split_files_are_one_model(tmp_path: Path) -> None:
    paths = split(tmp_path)
    assert [path.name for path in paths] == [
        f"a-{number:05d}-of-{len(paths):05d}.gguf" for number in range(1, len(paths) + 1)
    ]
    whole = tmp_path / "whole.gguf"
    write_model(tmp_path / "m", whole)
    found, alone = read_gguf(paths[0]), read_gguf(whole)
    assert list(found.tensors) == list(alone.tensors)
    assert found.metadata == alone.metadata
    assert found.paths == tuple(paths)


def test_split_files_have_to_be_complete(tmp_path: Path) -> None:
    paths = split(tmp_path)
    with pytest.raises(RequestError, match="is not the first") as caught:
        read_gguf(paths[1])
    assert caught.value.hint == f"name {paths[0].name}"
    raw = paths[1].read_bytes()
    paths[1].write_bytes(of(raw, b"split.no", 4, "<H", 7))
    with pytest.raises(RequestError, match="does not say that it is file 2"):
        read_gguf(paths[0])
    paths[1].unlink()
    with pytest.raises(RequestError, match=f"{paths[1].name} is missing"):
        read_gguf(paths[0])
    moved = paths[0].rename(tmp_path / "b.gguf")
    with pytest.raises(RequestError, match="its name does not say which"):
        read_gguf(moved)


def test_the_model_of_a_folder(tmp_path: Path) -> None:
    assert first_file(tmp_path) is None
    for name in ("mmproj-a.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    assert first_file(tmp_path) == tmp_path / "a-00001-of-00002.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(RequestError, match="2 GGUF models"):
        first_file(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert first_file(tmp_path) is None
