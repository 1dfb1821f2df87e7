"""ggml's block formats as pure tensor functions."""

from __future__ import annotations

from importlib import import_module
from typing import cast

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.ggml.base import BlockGrid, BlockTensor, Search
from llmopt.specs.base import lookup
from llmopt.specs.ggml import GGML_TYPES

__all__ = ["BlockGrid", "BlockTensor", "Search", "block_grid", "decode", "encode"]

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def block_grid(type_id: str) -> BlockGrid:
    """The implementation of a type that has blocks."""
    spec = lookup(GGML_TYPES, "GGUF type", type_id)
    return cast("BlockGrid", import_module(spec.module).GRIDS[type_id])


def encode(
    type_id: str, w: Tensor, importance: Tensor | None = None, search: Search = "best"
) -> Tensor:
    """w float32 [rows, cols] as uint8 [rows, bytes] of any type, floats included.

    RequestError where blocks do not fill a row, float16 cannot hold a value, or a type with blocks
    is to hold what is not finite.
    """
    spec = lookup(GGML_TYPES, "GGUF type", type_id)
    if w.shape[1] % spec.block:
        raise RequestError(f"{type_id} has blocks of {spec.block}, and a row {w.shape[1]} weights")
    if type_id in _PLAIN:
        stored = w.to(_PLAIN[type_id])
        if type_id != "F32" and not _finite(stored) and _finite(w):
            raise RequestError(f"a value is too large for {type_id}")
        return stored.contiguous().view(torch.uint8)
    if not _finite(w):
        raise RequestError(f"{type_id} cannot hold NaN or infinity")
    return block_grid(type_id).encode(w, importance, search)


def decode(type_id: str, data: Tensor) -> Tensor:
    """uint8 [rows, bytes] of any type as float32 [rows, cols]."""
    if type_id in _PLAIN:
        return data.contiguous().view(_PLAIN[type_id]).to(torch.float32)
    return block_grid(type_id).decode(data)


def _finite(values: Tensor) -> bool:
    """Whether all are; NaN, too, is the least and the greatest. A tenth of isfinite's time."""
    return not values.numel() or all(bool(end.isfinite()) for end in torch.aminmax(values))
