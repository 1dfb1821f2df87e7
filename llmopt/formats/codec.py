"""What a format does with one quantized linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

from torch import Tensor

from llmopt.grids import ggml
from llmopt.grids.base import Grid, Quantized
from llmopt.grids.ggml import BlockTensor
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, GRIDS, load, lookup

#: integers with scales, or blocks of ggml
Q = TypeVar("Q", bound=Quantized)


class Codec(Protocol[Q]):
    """Between a quantized linear and the tensors that it is stored as."""

    def accepts(self, tensor: Q) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""

    def pack(self, tensor: Q) -> dict[str, Tensor]:
        """The tensors to store, by the suffix of their names; `accepts` returned None."""

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> Q:
        """What was packed; RequestError where the parts do not fit each other."""


def codec_of(format_id: str) -> Codec[Quantized]:
    """The codec of a format that holds quantized linears."""
    spec = lookup(FORMATS, "format", format_id)
    codec: Codec[Quantized] = load(spec.module).Codec(spec.version)
    return codec


def decode(tensor: Quantized, rows: slice | None = None) -> Tensor:
    """The float32 weight [out, in] that a quantized tensor stands for, or some rows of it."""
    rows = slice(None) if rows is None else rows
    if isinstance(tensor, BlockTensor):
        return ggml.decode(tensor.grid, tensor.data[rows])
    grid: Grid = load(lookup(GRIDS, "grid", tensor.grid).module)
    params = replace(tensor.params, scale=tensor.params.scale[rows], zero=tensor.params.zero[rows])
    return grid.decode(tensor.codes[rows], params)
