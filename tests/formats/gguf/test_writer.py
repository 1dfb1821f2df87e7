"""Writing GGUF files: layout, types of values, splitting, and what happens when it goes wrong."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from llmopt.errors import LlmoptError
from llmopt.formats.gguf.container import read_gguf
from llmopt.formats.gguf.writer import TensorEntry, write_gguf
from llmopt.formats.tensor_header import TensorHeader

METADATA = {
    "general.architecture": "llama",
    "a.text": "ü",
    "a.number": 7,
    "a.large": 1 << 40,
    "a.below": -3,
    "a.real": 0.25,
    "a.flag": True,
    "a.bytes": b"\x01\xff",
    "a.list": [1, -1],
    "a.reals": [0.5, 1.0],
    "a.words": ["x", ""],
    "a.flags": [True, False],
    "a.empty": [],
    "a.nothing": "",
}


def entries(folder: Path, count: int = 3) -> list[TensorEntry]:
    """Tensors of 96 bytes: of pieces, and of two ranges of another file."""
    source = folder / "source.bin"
    source.write_bytes(bytes(range(256)))
    ranges = [
        TensorHeader("first", "U8", (40,), source, 10, 50),
        TensorHeader("second", "U8", (56,), source, 100, 156),
    ]
    made = TensorEntry("made.weight", "F32", (2, 12), lambda: iter([b"\x01" * 32, b"\x02" * 64]))
    copied = TensorEntry("copied.weight", "F16", (4, 12), ranges)
    more = [TensorEntry(f"{i}.weight", "F32", (24,), lambda: [bytes(96)]) for i in range(count - 2)]
    return [made, copied, *more]


def test_values_have_the_types_that_llama_cpp_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, entries(tmp_path))
    fields = gguf.GGUFReader(path).fields
    types = {name: [each.name for each in field.types] for name, field in fields.items()}
    assert {name: kinds for name, kinds in types.items() if name.startswith("a.")} == {
        "a.text": ["STRING"],
        "a.number": ["UINT32"],
        "a.large": ["INT64"],
        "a.below": ["INT64"],
        "a.real": ["FLOAT32"],
        "a.flag": ["BOOL"],
        "a.bytes": ["ARRAY", "UINT8"],
        "a.list": ["ARRAY", "INT32"],
        "a.reals": ["ARRAY", "FLOAT32"],
        "a.words": ["ARRAY", "STRING"],
        "a.flags": ["ARRAY", "BOOL"],
    }
    written = {key: value for key, value in METADATA.items() if value not in ("", [])}
    assert read_gguf(path).metadata == written


def test_data_is_copied_and_made(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, entries(tmp_path))
    found = read_gguf(path).tensors
    raw = path.read_bytes()
    made, copied = found["made.weight"], found["copied.weight"]
    assert raw[made.start : made.end] == b"\x01" * 32 + b"\x02" * 64
    assert raw[copied.start : copied.end] == bytes(range(10, 50)) + bytes(range(100, 156))
    assert copied.shape == (4, 12)
    assert all(tensor.start % 32 == 0 for tensor in found.values())
    assert [tensor.name for tensor in gguf.GGUFReader(path).tensors] == list(found)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, METADATA, entries(tmp_path))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_splits_have_names_and_keys_of_llama_cpp(tmp_path: Path) -> None:
    paths = write_gguf(tmp_path / "a.gguf", METADATA, entries(tmp_path, 5), max_file_bytes=192)
    assert [path.name for path in paths] == [f"a-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for number, path in enumerate(paths):
        fields = gguf.GGUFReader(path).fields
        assert fields["split.no"].contents() == number
        assert fields["split.count"].contents() == 3
        assert fields["split.tensors.count"].contents() == 5
        assert fields["split.tensors.count"].types[0].name == "INT32"
        assert fields["split.no"].types[0].name == "UINT16"
        assert ("a.text" in fields) == (number == 0)
    assert len(read_gguf(paths[0]).tensors) == 5


def test_a_source_of_the_wrong_size_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    short = TensorEntry("short.weight", "F32", (24,), lambda: [bytes(95)])
    with pytest.raises(LlmoptError, match=r"tensor short\.weight has 95 bytes, not 96"):
        write_gguf(path, METADATA, [short])
    assert not path.exists()


def test_a_source_file_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(50))
    header = TensorHeader("x", "F32", (24,), tmp_path / "short.bin", 0, 96)
    with pytest.raises(LlmoptError, match=r"short\.bin ended inside tensor x"):
        write_gguf(tmp_path / "a.gguf", METADATA, [TensorEntry("x.weight", "F32", (24,), [header])])
