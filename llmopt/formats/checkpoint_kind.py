"""Checkpoints: folders with config.json and safetensors. No torch. llmopt.formats.kind.Kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.bitsandbytes_config import STATE, with_shapes
from llmopt.formats.fused import unfused, unstacked
from llmopt.formats.headers import INDEX, OF_TRAINING, PICKLES, WEIGHTS, read_config, shard_names
from llmopt.formats.other_folders import not_a_model
from llmopt.formats.quantization import contents_of
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.tensor_header import Headers, TensorHeader
from llmopt.model.contents import Contents
from llmopt.specs.families import FamilySpec, family_of


def recognises(folder: Path) -> bool:
    """Whether there are weights in safetensors."""
    return any(folder.glob("*.safetensors"))


def headers(folder: Path) -> Headers:
    """Everything known about the model in `folder` before its weights are read.

    Experts that share a tensor appear as a tensor each, whose bytes are a part of the shared one.
    Raises RequestError, naming the file, for a directory that is incomplete, inconsistent or
    damaged, and for one that holds only pickled weights.
    """
    config = read_config(folder)
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
    family = _known(config)
    if family is not None and family.experts is not None:
        tensors = unfused(tensors, family.experts)
    if family is not None and family.stacks:
        tensors = unstacked(tensors, family)
    if any(name.endswith("." + STATE) for name in tensors):
        tensors = with_shapes(tensors)
    return Headers(folder, config, tensors, frozenset({INDEX}))


def contents(folder: Path) -> Contents:
    """What the headers and the config say of the model."""
    return contents_of(headers(folder))


def check(folder: Path, progress: Callable[[int, int], None]) -> None:
    """The tensors are those that the config asks for, and all numbers are numbers."""
    from llmopt.formats.fit import check_tensors  # torch, for what was not looked at before
    from llmopt.formats.values import check_values

    check_tensors(folder)
    check_values(headers(folder), progress)


def _known(config: JsonObject) -> FamilySpec | None:
    """The family, None where it is not supported: others say so."""
    try:
        return family_of(config)
    except RequestError:
        return None


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
