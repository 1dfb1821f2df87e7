"""A Hugging Face model directory, read tensor by tensor.

Names are those of `specs.families.Naming`: what the checkpoint says, with a missing base prefix
put back. A quantized linear appears as one tensor `<module>.weight`, whatever it is stored as.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.codec import codec_of, decode
from llmopt.formats.headers import read_headers
from llmopt.formats.layout import Quantization
from llmopt.formats.quantization import parts_of, quantized_layers, read_quantization
from llmopt.formats.safetensors import read_rows, read_tensor, torch_dtype
from llmopt.formats.side_files import SideFiles
from llmopt.formats.tensor_header import TensorHeader
from llmopt.grids.base import Quantized
from llmopt.model.layout import Layout
from llmopt.specs.families import FamilySpec, Naming, naming_in

#: rows that are compared at once
_ROWS = 1024


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint; `header` is where its bytes lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    header: TensorHeader


@dataclass(frozen=True)
class Checkpoint:
    """An open model directory.

    `stored` are the tensors on disk. `layers` are its quantized linears by module name.
    """

    folder: Path
    config: JsonObject
    family: FamilySpec
    naming: Naming
    stored: Mapping[str, StoredTensor]
    side_files: SideFiles
    quantization: Quantization | None = None
    layers: Mapping[str, Layout] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read what the directory says about itself; RequestError where it is not usable."""
        headers = read_headers(folder)
        config = headers.config
        found = {name: _from_header(header) for name, header in headers.tensors.items()}
        naming = naming_in(config, found)
        stored = {naming.rename(name): tensor for name, tensor in found.items()}
        quantization = read_quantization(folder, config)
        layers = quantized_layers(stored, quantization)
        others = headers.side_files
        return cls(folder, config, naming.family, naming, stored, others, quantization, layers)

    @property
    def names(self) -> list[str]:
        """The logical tensors: a quantized linear counts as its weight."""
        weights = [f"{module}.weight" for module in self.layers]
        return [name for name in self.stored if name not in self.parts] + weights

    @cached_property
    def parts(self) -> dict[str, str]:
        """Which quantized linear a stored tensor belongs to; a bias belongs to none."""
        if self.quantization is None:
            return {}
        return {
            name: module
            for module in self.layers
            for name in parts_of(module, self.stored, self.quantization).values()
        }

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
        if self.stored[head].shape != self.stored[embedding].shape:
            return False
        both = (self.pieces(name, _ROWS) for name in (head, embedding))
        return all(torch.equal(*rows) for rows in zip(*both, strict=True))

    @property
    def dense_dtype(self) -> torch.dtype:
        """The dtype of the weights that are not quantized: the embedding's."""
        return self.stored[f"{self.naming.embedding}.weight"].dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor; that of the embedding for a linear that is quantized."""
        return self.stored[name].dtype if name in self.stored else self.dense_dtype

    def read(self, name: str) -> Tensor:
        """A tensor as stored; RequestError where the checkpoint has none of this name."""
        if name not in self.stored:
            raise RequestError(f"the weights have no tensor {name}")
        return self.stored[name].read()

    def rows(self, name: str, wanted: Tensor) -> Tensor:
        """Some rows of a stored tensor, int64 [n] in ascending order; reads no others if it can."""
        header = self.stored[name].header
        if header.arranged is not None:
            return self.read(name)[wanted]
        starts = torch.cat([wanted[:1], wanted[1:][wanted.diff() > 1]]).tolist()
        stops = torch.cat([wanted[:-1][wanted.diff() > 1], wanted[-1:]]).tolist()
        runs = zip(starts, stops, strict=True)
        return torch.cat([read_rows(header, start, stop + 1) for start, stop in runs])

    def pieces(self, name: str, rows: int) -> Iterator[Tensor]:
        """A stored tensor, so many rows at a time; it is read whole where they lie otherwise."""
        header = self.stored[name].header
        if header.arranged is not None or not header.shape:
            yield from torch.split(self.read(name), rows) if header.shape else [self.read(name)]
            return
        for start in range(0, header.shape[0], rows):
            yield read_rows(header, start, min(start + rows, header.shape[0]))

    def read_layer(self, module: str) -> Quantized:
        """A quantized linear, exactly as stored."""
        assert self.quantization is not None
        names = parts_of(module, self.stored, self.quantization)
        stored = {suffix: self.read(name) for suffix, name in names.items()}
        try:
            return codec_of(self.quantization.format).unpack(stored, self.layers[module])
        except RequestError as error:
            raise RequestError(f"{module}: {error.message}") from error

    def weight(self, module: str) -> Tensor:
        """A linear's weight as float32 [out, in], decoded where it is quantized.

        A head that shares the embedding's weight has that.
        """
        if module in self.layers:
            return decode(self.read_layer(module))
        if module == self.naming.head:
            return self.read(f"{self.naming.embedding if self.tied else module}.weight").float()
        weight = self.read(f"{module}.weight").float()
        return weight.T if self.naming.transposed(module) else weight


def _from_header(header: TensorHeader) -> StoredTensor:
    return StoredTensor(torch_dtype(header), header.shape, lambda: read_tensor(header), header)
