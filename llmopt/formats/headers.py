"""What a model directory holds, from config.json and the headers of its weight files alone.

No torch, so that the planner answers at once.
"""

from __future__ import annotations

from pathlib import Path

from llmopt.artifact import JsonObject, check_regular
from llmopt.errors import RequestError
from llmopt.formats.files import read_json
from llmopt.formats.kind import kind_in, reader
from llmopt.formats.other_folders import check_adapter, not_a_model
from llmopt.formats.tensor_header import Headers

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: bytes of a shard at most, and of a part that is one as it is, where there are several
SHARD_BYTES, LARGE_PART = 4 << 30, 64 << 20
PICKLES = (".bin", ".pt", ".pth")
#: pickles that trainers leave beside a model
OF_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


def read_headers(folder: Path) -> Headers:
    """Everything known about the model in `folder` before its weights are read.

    Raises RequestError, naming the file, for a directory that is incomplete, inconsistent or
    damaged, and for one that holds only pickled weights.
    """
    return reader(kind_in(folder)).headers(folder)


def read_config(folder: Path) -> JsonObject:
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
    stated = read_json(index).get("weight_map")
    if not isinstance(stated, dict) or not stated:
        raise RequestError(f"{index.name} has no weight_map")
    weight_map: dict[str, str] = {}
    for tensor, name in stated.items():
        # an index must not reach outside its directory
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise RequestError(f"{index.name} names {name!r}, which is not a file beside it")
        if not (index.parent / name).is_file():
            raise RequestError(f"{index.name} names {name}, which is missing from {index.parent}")
        weight_map[tensor] = name
    return weight_map, sorted(set(weight_map.values()))
