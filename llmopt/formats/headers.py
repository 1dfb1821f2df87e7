"""What a Hugging Face directory holds, from config.json and the headers of its weight files alone.

No torch, so that the planner answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.artifact import check_regular
from llmopt.errors import RequestError
from llmopt.formats.bitsandbytes_config import STATE, with_shapes
from llmopt.formats.files import read_json
from llmopt.formats.fused import unfused
from llmopt.formats.gguf.container import first_file, read_gguf
from llmopt.formats.gguf.quantization import described
from llmopt.formats.gguf.restore import restore
from llmopt.formats.other_folders import check_adapter, not_a_model
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.side_files import SideFiles, side_files
from llmopt.formats.tensor_header import TensorHeader
from llmopt.specs.families import FAMILIES

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth")
#: pickles that trainers leave beside a model
OF_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


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
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    if found.types:
        config["quantization_config"] = described(found.types)
    return Headers(folder, config, found.tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a model directory."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a directory")
    check_regular(folder)
    check_adapter(folder)
    if not (folder / "config.json").is_file():
        raise not_a_model(folder, "config.json")
    return read_json(folder / "config.json")


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
