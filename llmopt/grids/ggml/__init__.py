"""ggml's block formats as pure tensor functions."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids.ggml.base import BlockGrid, BlockTensor, Search
from llmopt.grids.ggml.bits import too_large
from llmopt.grids.ggml.weighing import floored
from llmopt.specs.base import load, lookup
from llmopt.specs.ggml import GGML_TYPES

__all__ = [
    "BlockGrid",
    "BlockTensor",
    "Search",
    "block_grid",
    "check_range",
    "decode",
    "encode",
    "place_of",
]

# Weights that are decoded at once: what that takes beside is several times as large as they are.
_DECODED = 1 << 22
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def block_grid(type_id: str) -> BlockGrid:
    """The implementation of a type that has blocks."""
    spec = lookup(GGML_TYPES, "GGUF type", type_id)
    return cast("BlockGrid", load(spec.module).GRIDS[type_id])


def encode(
    type_id: str, w: Tensor, importance: Tensor | None = None, search: Search = "best"
) -> Tensor:
    """w float32 [rows, cols] as uint8 [rows, bytes] of any type, floats included, on w's device.

    importance: [cols] on any device, >= 0, weighs squared errors; zero everywhere it counts as
    none to "best". RequestError where blocks do not fill a row, the type has no values as large as
    the weights, a type with blocks is to hold what is not finite, or it needs importance (as ggml's
    encoder does) and is given none.
    """
    spec = lookup(GGML_TYPES, "GGUF type", type_id)
    if w.shape[1] % spec.block:
        raise RequestError(f"{type_id} has blocks of {spec.block}, and a row {w.shape[1]} weights")
    if spec.is_float:
        return _as_floats(type_id, w)
    if spec.importance == "required" and importance is None:
        raise RequestError(
            f"{type_id} needs an importance matrix", hint="calibrate, or pass an imatrix file"
        )
    check_range(type_id, w)
    grid = block_grid(type_id)
    place = torch.device("cpu") if search == "reference" else place_of(type_id, w)
    if importance is not None:
        importance = importance.to(place)
        if search == "best":
            importance = floored(importance)
    return grid.encode(w.to(place), importance, search).to(w.device)


def decode(type_id: str, data: Tensor) -> Tensor:
    """uint8 [rows, bytes] of any type as float32 [rows, cols], on the same device."""
    if lookup(GGML_TYPES, "GGUF type", type_id).is_float:
        return data.contiguous().view(_DTYPES[type_id]).to(torch.float32)
    grid, place = block_grid(type_id), place_of(type_id, data)
    spec = GGML_TYPES[type_id]
    cols = data.shape[1] // spec.nbytes * spec.block
    out = torch.empty(len(data), cols, device=data.device)
    step = max(1, _DECODED // max(cols, 1))
    for start in range(0, len(data), step):
        rows = slice(start, start + step)
        out[rows] = grid.decode(data[rows].to(place))
    return out


def place_of(type_id: str, tensor: Tensor) -> torch.device:
    """Where to work on a tensor in a type with blocks: on its own device, or else the CPU."""
    return torch.device("cpu") if block_grid(type_id).on_cpu else tensor.device


def check_range(type_id: str, w: Tensor) -> None:
    """RequestError where w is not finite or has weights that no block of the type holds."""
    if not w.numel():
        return
    low, high = (float(end) for end in torch.aminmax(w))  # a tenth of isfinite's time; NaN is both
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RequestError(f"{type_id} cannot hold NaN or infinity")
    if max(-low, high) > block_grid(type_id).largest:
        raise too_large(type_id)


def _as_floats(type_id: str, w: Tensor) -> Tensor:
    stored = w.to(_DTYPES[type_id])
    if type_id != "F32" and not _finite(stored) and _finite(w):
        raise too_large(type_id)
    return stored.contiguous().view(torch.uint8)


def _finite(values: Tensor) -> bool:
    """Whether all are."""
    return not values.numel() or all(bool(end.isfinite()) for end in torch.aminmax(values))
