"""Reading tensors with pread, writing them in parts and laying them out as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmopt.formats.safetensors import (
    DTYPE_NAMES,
    TORCH_DTYPES,
    natural_key,
    read_tensor,
    write_file,
)
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.tensor_header import DTYPE_BYTES

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
