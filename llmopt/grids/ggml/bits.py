"""How ggml lays small integers out in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.errors import RequestError

#: of float16
_LARGEST = 65504.0


def too_large(type_id: str) -> RequestError:
    """What is wrong where a type has no values as large as the weights."""
    return RequestError(
        f"the weights are too large for {type_id}", hint="F32 and BF16 hold larger ones"
    )


def pack_bits(values: Tensor, bits: int, run: int) -> Tensor:
    """uint8 [n, width * bits / 8] from values uint8 [n, width] below 2**bits.

    A byte holds values `run` apart, the first in its lowest bits; the bytes of `run` neighbours
    follow each other.
    """
    parts = values.view(values.shape[0], -1, 8 // bits, run)
    packed = parts[:, :, 0].clone()
    for index in range(1, 8 // bits):
        packed |= parts[:, :, index] << (bits * index)
    return packed.view(values.shape[0], -1)


def unpack_bits(data: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of pack_bits: uint8 [n, width] from uint8 [n, bytes]."""
    parts = data.reshape(data.shape[0], -1, 1, run)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device).view(-1, 1)
    values: Tensor = (parts >> shifts) & (2**bits - 1)
    return values.view(data.shape[0], -1)


def half_bytes(values: Tensor, type_id: str) -> Tensor:
    """uint8 [n, 2]: scales or minimums [n] of blocks of a type as float16, little-endian.

    RequestError from the largest float16 on: that is also what larger ones were clamped to.
    """
    if values.numel():
        low, high = torch.aminmax(values)
        if not (low > -_LARGEST and high < _LARGEST):  # nor where they are NaN
            raise too_large(type_id)
    return values.to(torch.float16).contiguous().view(torch.uint8).view(-1, 2)


def read_half(data: Tensor, start: int) -> Tensor:
    """float32 [n]: the float16 that begins at byte `start` of each row of data."""
    return data[:, start : start + 2].contiguous().view(torch.float16).view(-1).to(torch.float32)


def to_half(values: Tensor) -> Tensor:
    """float32 values rounded to those of float16; what is beyond its range becomes its largest."""
    return values.clamp(-_LARGEST, _LARGEST).to(torch.float16).to(torch.float32)
