"""A Hugging Face model directory, read tensor by tensor.

Names are those of `specs.families.Naming`: what the checkpoint says, with a missing base prefix
put back. A quantized linear appears as one tensor `<module>.weight`, whatever it is stored as.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats import gptq
from llmopt.formats.gptq_config import GptqConfig, LayerLayout, read_gptq_config
from llmopt.formats.headers import (
    PICKLES,
    TensorHeader,
    read_config,
    read_headers,
    shard_names,
    side_files,
)
from llmopt.formats.safetensors import DTYPE_NAMES, TORCH_DTYPES, read_tensor
from llmopt.grids.base import QuantizedTensor
from llmopt.specs.families import FamilySpec, Naming, family_of

_PICKLE_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint; `header` is where its bytes lie, None if they are pickled."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    header: TensorHeader | None = None


@dataclass(frozen=True)
class Checkpoint:
    """An open model directory.

    `stored` are the tensors on disk. `layers` are its quantized linears by module name.
    """

    folder: Path
    config: dict[str, Any]
    family: FamilySpec
    naming: Naming
    stored: Mapping[str, StoredTensor]
    side_files: list[str]
    quantization: GptqConfig | None = None
    layers: Mapping[str, LayerLayout] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, *, allow_pickle: bool = False) -> Checkpoint:
        """Read what the directory says about itself; RequestError where it is not usable.

        With `allow_pickle`, a directory without safetensors is read from its .bin or .pt files,
        whose pickles may then build plain tensors and nothing else.
        """
        if allow_pickle and not any(folder.glob("*.safetensors")):
            config, found = read_config(folder), _open_pickles(folder)
        else:
            headers = read_headers(folder)
            config = headers.config
            found = {name: _from_header(header) for name, header in headers.tensors.items()}
        family = family_of(config)
        naming = family.naming(found)
        stored = {naming.rename(name): tensor for name, tensor in found.items()}
        quantization = read_gptq_config(folder, config)
        layers = _layers(stored, quantization) if quantization else {}
        return cls(folder, config, family, naming, stored, side_files(folder), quantization, layers)

    @property
    def names(self) -> list[str]:
        """The logical tensors: a quantized linear counts as its weight."""
        parts = {f"{module}.{suffix}" for module in self.layers for suffix in gptq.SUFFIXES}
        weights = [f"{module}.weight" for module in self.layers]
        return [name for name in self.stored if name not in parts] + weights

    @cached_property
    def tied(self) -> bool:
        """Whether the head's weight is the token embedding's."""
        head, embedding = f"{self.naming.head}.weight", f"{self.naming.embedding}.weight"
        if self.naming.head in self.layers:
            return False
        if head not in self.stored:
            return True
        if not self.config.get("tie_word_embeddings", True):
            return False
        return torch.equal(self.read(head), self.read(embedding))

    @property
    def dense_dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized: the embedding's."""
        return self.stored[f"{self.naming.embedding}.weight"].dtype

    def read(self, name: str) -> Tensor:
        """A tensor as stored; RequestError where the checkpoint has none of this name."""
        if name not in self.stored:
            raise RequestError(f"the weights have no tensor {name}")
        return self.stored[name].read()

    def read_layer(self, module: str) -> QuantizedTensor:
        """A quantized linear, exactly as stored."""
        assert self.quantization is not None
        stored = {
            suffix: self.read(f"{module}.{suffix}")
            for suffix in gptq.SUFFIXES
            if f"{module}.{suffix}" in self.stored
        }
        try:
            return gptq.unpack(stored, self.layers[module], self.quantization.version)
        except RequestError as error:
            raise RequestError(f"{module}: {error.message}") from error


def _from_header(header: TensorHeader) -> StoredTensor:
    return StoredTensor(
        TORCH_DTYPES[header.dtype], header.shape, lambda: read_tensor(header), header
    )


def _layers(stored: Mapping[str, StoredTensor], config: GptqConfig) -> dict[str, LayerLayout]:
    """The quantized linears: those that have a qweight."""
    layers = {}
    for name in stored:
        if not name.endswith(".qweight"):
            continue
        module = name.removesuffix(".qweight")
        layout = config.layer(module)
        if layout is None:
            raise RequestError(f"{module} is stored quantized, but the config says it is not")
        for suffix in ("qzeros", "scales"):
            if f"{module}.{suffix}" not in stored:
                raise RequestError(f"{module} has a qweight but no {suffix}")
        layers[module] = layout
    if not layers:
        raise RequestError("the config says the model is quantized, but no linear is")
    return layers


def _open_pickles(folder: Path) -> dict[str, StoredTensor]:
    if (folder / _PICKLE_INDEX).is_file():
        _, names = shard_names(folder / _PICKLE_INDEX)
        files = [folder / name for name in names]
    else:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(PICKLES))
        files = [path for path in files if path.name != "training_args.bin"]
    stored: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _load_pickle(path).items():
            if name in stored:
                raise RequestError(f"tensor {name} is in more than one of the .bin files")
            stored[name] = StoredTensor(tensor.dtype, tuple(tensor.shape), tensor.clone)
    if not stored:
        raise RequestError(f"{folder} has a config.json but no weights")
    return stored


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file, mapped; whatever else its pickle asks for is refused."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RequestError(f"{path.name} is not a file of plain tensors") from error
    if not isinstance(loaded, dict):
        raise RequestError(f"{path.name} does not hold a dictionary of tensors")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise RequestError(f"tensor {name} of {path.name} has the dtype {tensor.dtype}")
    return tensors
