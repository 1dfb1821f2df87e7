"""What a Hugging Face directory holds, from config.json and the headers of its weight files alone.

A safetensors file is an 8-byte little-endian length, a JSON header of that length and the data;
only the first two are read here. No torch, so that the planner answers at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.artifact import check_regular
from llmopt.errors import RequestError
from llmopt.formats.bitsandbytes_config import STATE, with_shapes
from llmopt.formats.files import open_regular
from llmopt.formats.fused import unfused
from llmopt.formats.gguf.container import first_file, read_gguf
from llmopt.formats.gguf.order import Arrangement
from llmopt.formats.gguf.quantization import described
from llmopt.formats.gguf.restore import restore
from llmopt.formats.other_folders import check_adapter, not_a_model
from llmopt.formats.side_files import SideFiles, side_files
from llmopt.specs.families import FAMILIES

#: bytes of an element of each dtype that a checkpoint may hold
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
#: pickles that trainers leave beside a model
OF_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")

#: the safetensors library refuses longer headers, too
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorHeader:
    """Where one tensor lies: bytes [start, end) of `file`, row-major, little-endian.

    dtype: of safetensors, or a type in specs.ggml. shape: of what is read. stored_shape: what the
    file says of the shape, where a reader is to take it for another. arranged: how the file's
    tensor differs from what is read, None where it does not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    stored_shape: tuple[int, ...] | None = None
    arranged: Arrangement | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start

    @property
    def plain(self) -> bool:
        """Whether its bytes, copied, are the tensor; else they have to be read and written."""
        return self.arranged is None and self.dtype in DTYPE_BYTES


@dataclass(frozen=True)
class Headers:
    """A model directory without its data."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files as a whole."""
        return sum(file.stat().st_size for file in {t.file for t in self.tensors.values()})

    @property
    def side_files(self) -> SideFiles:
        """The files that came with the model, and which of them stay behind."""
        read = {tensor.file.name for tensor in self.tensors.values()}
        return side_files(self.folder, frozenset({*read, INDEX}))


def read_headers(folder: Path) -> Headers:
    """Everything known about the model in `folder` before its weights are read.

    Experts that share a tensor appear as a tensor each, whose bytes are a part of the shared one.
    Raises RequestError, naming the file, for a directory that is incomplete, inconsistent or
    damaged, and for one that holds only pickled weights.
    """
    config = read_config(folder)
    if (gguf := first_file(folder)) is not None:
        return _in_gguf(folder, config, gguf)
    shards, weight_map = _shards(folder)
    tensors: dict[str, TensorHeader] = {}
    for shard in shards:
        for name, header in read_file_headers(shard).items():
            if name in tensors:
                raise RequestError(
                    f"tensor {name} is in both {tensors[name].file.name} and {shard.name}"
                )
            tensors[name] = header
    if weight_map is not None:
        _check_index(weight_map, tensors)
    if not tensors:
        raise RequestError(f"{folder} has a weight file without a single tensor")
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None and family.experts is not None:
        tensors = unfused(tensors, family.experts)
    if any(name.endswith("." + STATE) for name in tensors):
        tensors = with_shapes(tensors)
    return Headers(folder, config, tensors)


def _in_gguf(folder: Path, config: dict[str, Any], path: Path) -> Headers:
    """A model whose weights are in a GGUF file."""
    found = restore(read_gguf(path), config)
    tensors = {name: TensorHeader(**vars(part)) for name, part in found.parts.items()}
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if found.types:
        config["quantization_config"] = described(found.types)
    return Headers(folder, config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model directory."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a directory")
    check_regular(folder)
    check_adapter(folder)
    if not (folder / "config.json").is_file():
        raise not_a_model(folder, "config.json")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or RequestError saying where it is broken."""
    try:
        with open_regular(path) as file:
            return _json_object(file.read(), path.name)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def shard_names(index: Path) -> tuple[dict[str, str], list[str]]:
    """The map of tensor to file in an index, and the files, which stand beside it, sorted."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RequestError(f"{index.name} has no weight_map")
    for name in weight_map.values():
        # an index must not reach outside its directory
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise RequestError(f"{index.name} names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise RequestError(f"{index.name} names {name}, which is missing from {index.parent}")
    return weight_map, sorted(set(weight_map.values()))


def read_file_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one safetensors file, checked against each other and the file's size."""
    text, data_start, size = _header_text(path)
    entries = _json_object(text, f"the header of {path.name}")
    entries.pop("__metadata__", None)
    headers = {name: _entry(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, headers.values(), data_start, size)
    return headers


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata of a safetensors file."""
    text, _, _ = _header_text(path)
    metadata: dict[str, str]
    metadata = _json_object(text, f"the header of {path.name}").get("__metadata__", {})
    return metadata


def _shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files to read, and the index's map of tensor to file where there is one."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], None
    if (folder / INDEX).is_file():
        weight_map, names = shard_names(folder / INDEX)
        return [folder / name for name in names], weight_map
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found, None
    if found:
        raise RequestError(f"{folder} has {len(found)} safetensors files but no {INDEX}")
    raise _no_weights(folder)


def _no_weights(folder: Path) -> RequestError:
    pickles = sorted(
        path.name
        for path in folder.iterdir()
        if path.name.endswith(PICKLES) and not path.name.startswith(("consolidated", *OF_TRAINING))
    )
    if pickles:
        return RequestError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when loaded",
            hint="if you trust them, add --allow-pickle: llmopt quantize ... --allow-pickle "
            "(they are loaded as plain tensors only, and written as safetensors)",
        )
    return not_a_model(folder, "weights beside its config.json")


def _check_index(weight_map: dict[str, str], tensors: dict[str, TensorHeader]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors:
            raise RequestError(f"{INDEX} puts tensor {name} in {shard}, which does not hold it")
        if tensors[name].file.name != shard:
            raise RequestError(
                f"{INDEX} puts tensor {name} in {shard}, but it is in {tensors[name].file.name}"
            )
    for name, header in tensors.items():
        if name not in weight_map:
            raise RequestError(f"{header.file.name} holds tensor {name}, which {INDEX} lacks")


def _header_text(path: Path) -> tuple[bytes, int, int]:
    """The header's JSON, the offset at which data starts and the file's size."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or 8 + length > size:
                raise RequestError(
                    f"{path.name} is truncated: {size} bytes are fewer than its header needs"
                )
            if length > _MAX_HEADER_BYTES:
                raise RequestError(f"{path.name} claims a header of {length} bytes")
            return file.read(length), 8 + length, size
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error


def _entry(path: Path, name: str, entry: Any, data_start: int) -> TensorHeader:
    """One tensor's header, with offsets counted from the start of the file."""
    where = f"tensor {name} of {path.name}"
    if not isinstance(entry, dict):
        raise RequestError(f"{where} has no header")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if dtype not in DTYPE_BYTES:
        raise RequestError(f"{where} has the unknown dtype {dtype!r}")
    if not _whole_numbers(shape):
        raise RequestError(f"{where} has the invalid shape {shape!r}")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise RequestError(f"{where} has the invalid offsets {offsets!r}")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise RequestError(
            f"{where} has {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {expected}"
        )
    start, end = (data_start + offset for offset in offsets)
    return TensorHeader(name, dtype, tuple(shape), path, start, end)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(path: Path, headers: Iterable[TensorHeader], start: int, size: int) -> None:
    """The format allows neither overlaps nor holes: tensors cover the data exactly."""
    position = start
    for header in sorted(headers, key=lambda header: (header.start, header.end)):
        if header.end > size:
            raise RequestError(
                f"{path.name} is truncated: tensor {header.name} ends at byte {header.end}, "
                f"the file at {size}"
            )
        if header.start != position:
            fault = "overlaps another" if header.start < position else "follows a hole"
            raise RequestError(f"tensor {header.name} of {path.name} {fault} in the data")
        position = header.end
    if position != size:
        raise RequestError(f"{path.name} has {size - position} bytes that belong to no tensor")


def _json_object(text: bytes, where: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise RequestError(f"{where} has the key {twice!r} twice")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8 text") from error
    except RecursionError as error:
        raise RequestError(f"{where} is nested too deeply to be JSON of a model") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise RequestError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"{where} is not a JSON object")
    return value
