"""A linear in ggml's blocks, as parts of a conversion under way and GGUF files hold it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.gguf.restore import BLOCKS
from llmopt.grids.base import Quantized
from llmopt.grids.ggml import BlockTensor
from llmopt.model.layout import Layout


class Codec:
    """llmopt.formats.codec.Codec; rows stand in the model's order."""

    def __init__(self, _version: str | None = None) -> None:
        """All blocks of a type are alike, whatever the file's version."""

    def accepts(self, tensor: Quantized) -> str | None:
        """Why the tensor cannot be stored as it is, None where it can."""
        return None if isinstance(tensor, BlockTensor) else f"{tensor.grid} is no type of ggml"

    def pack(self, tensor: Quantized) -> dict[str, Tensor]:
        """The tensor to store: uint8 [rows, bytes]."""
        assert isinstance(tensor, BlockTensor)
        return {BLOCKS: tensor.data}

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> BlockTensor:
        """What was packed; RequestError where it is not there."""
        if BLOCKS not in stored:
            raise RequestError(f"the blocks of {layout.grid} are missing")
        return BlockTensor(grid=layout.grid, data=stored[BLOCKS])
