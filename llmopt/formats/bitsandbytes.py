"""The checkpoint layouts of bitsandbytes: NF4 and LLM.int8().

For a linear of `in` inputs and `out` outputs, n = in * out weights in row-major order:

    nf4:
    weight             uint8 [n / 2, 1]    codes, two to a byte, the first in the high half
    weight.absmax      float32 [n / 64]    scales; uint8 where they are quantized themselves
    weight.quant_map   float32 [16]        the levels
    weight.quant_state.bitsandbytes__nf4   uint8: JSON with the shape, the block and a dtype
    weight.nested_absmax, weight.nested_quant_map   of quantized scales: read, not written
    int8:
    weight             int8 [out, in]      code - 128
    SCB                float32 [out]       the number near 127 * scale that gives scale
    weight_format      uint8, a 0          rows in order

bitsandbytes decodes int8 as (weight * SCB) * float32(1 / 127) and we as weight * scale with
scale = float32(SCB * float32(1 / 127)): the two may differ in the last bit. `accepts` sees to it
that the scale itself comes back as it was. LLM.int8() also rounds activations when it computes,
those under a threshold, which is a matter of the engine and its settings, not of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.bitsandbytes_config import BLOCK, FOUR_BIT, STATE, matrix_shape
from llmopt.grids import nf4
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout

#: bitsandbytes' constant for 1 / 127
_PER_STEP = torch.tensor(7.874015718698502e-3)
#: scales that share a scale where they are quantized themselves
_NESTED_BLOCK = 256


@dataclass(frozen=True)
class Codec:
    """One of the two layouts, as the block walk's sink wants it."""

    version: str | None = FOUR_BIT

    def accepts(self, tensor: QuantizedTensor) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""
        params, grid = tensor.params, "nf4" if self.version == FOUR_BIT else "int8"
        if tensor.grid != grid:
            return f"bitsandbytes files of this kind hold {grid}, not {tensor.grid}"
        if params.group_index is not None:
            return "bitsandbytes files hold no group index"
        if not bool(params.scale.isfinite().all()):
            return "a scale is not finite"
        if self.version == FOUR_BIT:
            cols = tensor.codes.shape[1]
            fits = cols == params.scale.shape[1] * BLOCK
            return None if fits else f"bitsandbytes files have blocks of {BLOCK} weights"
        if params.scale.shape[1] != 1 or not bool((params.zero == 128).all()):
            return "bitsandbytes' int8 has one scale a row and no zero points"
        if not torch.equal(_row_constants(params.scale) * _PER_STEP, params.scale):
            return "a scale is not exact as a 127th of a float32"
        return None

    def pack(self, tensor: QuantizedTensor) -> dict[str, Tensor]:
        """The stored tensors by the suffix of their names; `accepts` returned None."""
        scale = tensor.params.scale
        if self.version != FOUR_BIT:
            return {
                "weight": (tensor.codes.to(torch.int16) - 128).to(torch.int8),
                "SCB": _row_constants(scale).reshape(-1),
                "weight_format": torch.tensor(0, dtype=torch.uint8),
            }
        codes = tensor.codes.reshape(-1, 2)
        return {
            "weight": (codes[:, :1] << 4) | codes[:, 1:],
            "weight.absmax": scale.reshape(-1).contiguous(),
            "weight.quant_map": nf4.levels.clone(),
            STATE: _state(tuple(tensor.codes.shape)),
        }

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> QuantizedTensor:
        """What was packed, or what bitsandbytes stored; RequestError where parts do not fit."""
        codes, scale = (_four_bits if self.version == FOUR_BIT else _eight_bits)(stored)
        params = AffineParams(
            bits=layout.bits,
            group_size=layout.group_size,
            symmetric=True,
            scale=scale,
            zero=torch.full_like(scale, 0 if layout.grid == "nf4" else 128, dtype=torch.int32),
            scale_dtype="float32",
        )
        return QuantizedTensor(grid=layout.grid, codes=codes, params=params)


def _state(shape: tuple[int, ...]) -> Tensor:
    """The JSON text of a weight as bytes; `dtype` is what bitsandbytes decodes to."""
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(shape)}
    return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)


def _row_constants(scale: Tensor) -> Tensor:
    """SCB: float32 numbers that give these scales where any do, else 127 times them."""
    near = scale * 127
    found = near
    for end in (-torch.inf, torch.inf):
        beside = torch.nextafter(near, torch.full_like(near, end))
        found = torch.where(found * _PER_STEP == scale, found, beside)
    return torch.where(found * _PER_STEP == scale, found, near)


def _four_bits(stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in] and scales float32 [out, in / 64]."""
    text, packed = bytes(stored[STATE].tolist()), stored["weight"]
    rows, cols = matrix_shape(text)
    groups, levels = rows * cols // BLOCK, stored.get("weight.quant_map", nf4.levels)
    if not torch.equal(levels, nf4.levels):
        raise RequestError("weight.quant_map holds other levels than those of nf4")
    if packed.dtype != torch.uint8 or packed.numel() != groups * BLOCK // 2:
        raise RequestError(f"the weight does not hold {rows} x {cols} codes of 4 bits")
    scale = stored["weight.absmax"]
    if "weight.nested_absmax" in stored:
        scale = _nested(stored, json.loads(text))
    if scale.dtype != torch.float32 or scale.numel() != groups:
        raise RequestError(f"weight.absmax does not hold {groups} scales")
    packed = packed.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1)
    return codes.reshape(rows, cols), scale.reshape(rows, -1).contiguous()


def _nested(stored: Mapping[str, Tensor], state: Mapping[str, object]) -> Tensor:
    """Scales that are quantized themselves, a byte each, in the order bitsandbytes computes in."""
    codes, table = stored["weight.absmax"], stored.get("weight.nested_quant_map")
    coarse, block = stored["weight.nested_absmax"], state.get("nested_blocksize")
    offset = state.get("nested_offset")
    if table is None or codes.dtype != torch.uint8 or len(table) != 256:
        raise RequestError("weight.absmax is not quantized the way weight.nested_absmax means")
    if block != _NESTED_BLOCK or not isinstance(offset, float):
        raise RequestError(f"scales that share a scale in {block}s cannot be read")
    if coarse.numel() != -(-codes.numel() // _NESTED_BLOCK):
        raise RequestError("weight.absmax and weight.nested_absmax do not agree on their length")
    each = coarse.float().repeat_interleave(_NESTED_BLOCK)[: codes.numel()]
    return table.float()[codes.reshape(-1).to(torch.int64)] * each + torch.tensor(offset)


def _eight_bits(stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in] and scales float32 [out, 1]."""
    weight, scb, order = stored["weight"], stored["SCB"], stored.get("weight_format")
    if weight.dtype != torch.int8 or weight.dim() != 2 or scb.shape != weight.shape[:1]:
        raise RequestError("weight and SCB are not an int8 matrix and a number for each row")
    if order is not None and int(order) != 0:
        raise RequestError(f"an int8 weight with the tile order {int(order)} cannot be read")
    return (weight.to(torch.int16) + 128).to(torch.uint8), (scb.float() * _PER_STEP).unsqueeze(1)
