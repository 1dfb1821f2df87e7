"""The compressed-tensors checkpoint layout of llm-compressor and vLLM.

For a linear of `in` inputs, `out` outputs, b bits and groups of g inputs (or one scale a row):

    weight_scale       [out, in / g]          float16 for integers; other float types are read
    pack-quantized:
    weight_packed      int32 [out, in * b / 32]     codes, packed along in, lowest bits first
    weight_zero_point  int32 [out * b / 32, in / g] packed along out; asymmetric only
    weight_g_idx       int32 [in]                   the group of each input; with act-order only
    weight_shape       int64 [2]                    out, in
    int-quantized:
    weight             int8 [out, in]               code - 128, symmetric
    float-quantized:
    weight             float8_e4m3fn [out, in]      symmetric
    weight_scale       [ceil(out / g), ceil(in / g)] where blocks of g x g share a scale

The package thinks of codes and zero points as signed, and adds 2^(b-1) to both before it packs
them: what is packed are our codes and zero points as they are. 3-bit codes straddle words, as the
package packs them from version 0.19 on; vLLM reads packed codes of 4 and 8 bits. It computes
(code - zero) * scale, so a negative scale is a number like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.bits import pack_bits, unpack_bits, words_for
from llmopt.formats.compressed_tensors_config import INTEGER, PACKED, sub_format
from llmopt.formats.float8 import float8_of, level_indices
from llmopt.formats.layout import layout_of
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS
from llmopt.specs.formats import COMPRESSED_TENSORS

#: dtype of stored scales -> one that holds them when they are stored again
_SCALES = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float8_e8m0fnu: "float32",
}


@dataclass(frozen=True)
class Codec:
    """This layout as the block walk's sink wants it; it comes in one version."""

    version: str | None = None

    def accepts(self, tensor: QuantizedTensor) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""
        params = tensor.params
        if tensor.grid not in FORMATS[COMPRESSED_TENSORS].grids:
            return f"compressed-tensors files do not hold {tensor.grid}"
        packed = sub_format(layout_of(tensor)) == PACKED
        in_rows = params.scale.shape[1] == 1 or _stored_blocks(tensor) is not None
        if not packed and not (in_rows and params.symmetric):
            return "weights that are not packed have one scale a row or block, and no zero points"
        stored = params.scale.to(getattr(torch, params.scale_dtype))
        if not torch.equal(stored.float(), params.scale):
            return f"a scale is not exact in {params.scale_dtype}"
        if not bool(params.scale.isfinite().all()):
            return "a scale is not finite"
        if tensor.grid == "fp8":
            return None
        lowest, highest = (int(bound) for bound in params.zero.aminmax())
        if lowest < 0 or highest >= 2**params.bits:
            return f"a zero point is outside 0 to {2**params.bits - 1}"
        middle = 2 ** (params.bits - 1)
        if params.symmetric and (lowest, highest) != (middle, middle):
            return f"the zero points of a symmetric tensor are {middle}"
        return None

    def pack(self, tensor: QuantizedTensor) -> dict[str, Tensor]:
        """The stored tensors by the suffix of their names; `accepts` returned None."""
        params, layout = tensor.params, layout_of(tensor)
        blocks = _stored_blocks(tensor) if layout.blocks else None
        stored_scale = params.scale if blocks is None else blocks
        scale = {"weight_scale": stored_scale.to(getattr(torch, params.scale_dtype))}
        if sub_format(layout) == INTEGER:
            return {"weight": (tensor.codes.to(torch.int16) - 128).to(torch.int8), **scale}
        if sub_format(layout) != PACKED:
            return {"weight": float8_of(tensor.codes), **scale}
        stored = {"weight_packed": pack_bits(tensor.codes, params.bits), **scale}
        if not params.symmetric:
            stored["weight_zero_point"] = pack_bits(params.zero.T, params.bits).T.contiguous()
        if params.group_index is not None:
            stored["weight_g_idx"] = params.group_index.to(torch.int32)
        return {**stored, "weight_shape": torch.tensor(tensor.codes.shape)}

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> QuantizedTensor:
        """What was packed; RequestError where the parts do not fit each other."""
        codes = _codes(stored, layout)
        rows, cols = codes.shape
        scale, group_index = _scale(stored["weight_scale"], rows, cols, layout)
        if "weight_g_idx" in stored:
            group_index = _stored_index(stored["weight_g_idx"], cols, scale.shape[1], layout)
        zero = torch.full(scale.shape, 0 if layout.grid == "fp8" else 2 ** (layout.bits - 1))
        if not layout.symmetric:
            zero = _zero(stored, scale, layout)
        params = AffineParams(
            bits=layout.bits,
            group_size=layout.group_size,
            symmetric=layout.symmetric,
            scale=scale,
            zero=zero.to(torch.int32),
            group_index=group_index,
            scale_dtype=_SCALES[stored["weight_scale"].dtype],
        )
        return QuantizedTensor(
            grid=layout.grid, codes=codes, params=params, activations=layout.activations
        )


def _stored_blocks(tensor: QuantizedTensor) -> Tensor | None:
    """Scales [ceil(rows / size), ceil(cols / size)] of FP8 in blocks; None where it is in none."""
    params, (rows, cols) = tensor.params, tensor.codes.shape
    size = params.group_size
    if tensor.grid != "fp8" or size == -1 or params.scale.shape[1] != -(-cols // size):
        return None
    in_order = torch.arange(cols, device=params.scale.device) // size
    index = params.group_index
    if index is not None and not torch.equal(index.to(in_order.dtype), in_order):
        return None
    blocks = params.scale[::size]
    wide = blocks.repeat_interleave(size, dim=0)[:rows]
    return blocks.contiguous() if torch.equal(wide, params.scale) else None


def block_scales(blocks: Tensor, rows: int, cols: int, size: int) -> tuple[Tensor, Tensor | None]:
    """Scales of blocks of size x size as [rows, groups], and a group index if columns are left.

    blocks: [ceil(rows / size), ceil(cols / size)], any float type.
    """
    if blocks.shape != (-(-rows // size), -(-cols // size)):
        raise RequestError(
            f"scales of shape {list(blocks.shape)} do not fit {rows} x {cols} in blocks of {size}"
        )
    scale = blocks.float().repeat_interleave(size, dim=0)[:rows].contiguous()
    ragged = blocks.shape[1] > 1 and cols % size != 0
    return scale, torch.arange(cols, dtype=torch.int32) // size if ragged else None


def _codes(stored: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """uint8 [rows, cols], whatever they are stored as."""
    if "weight_packed" not in stored:
        return _plain_codes(stored.get("weight"), layout)
    packed, shape = stored["weight_packed"], stored.get("weight_shape")
    rows, words = packed.shape
    cols = words * 32 // layout.bits if shape is None else int(shape[1])
    whole = shape is None or tuple(shape.tolist()) == (rows, cols)
    if layout.grid == "fp8" or not whole or words != words_for(cols, layout.bits):
        raise RequestError(
            f"weight_packed of shape {rows} x {words} does not hold {layout.grid} codes of the "
            "shape that weight_shape says"
        )
    return unpack_bits(packed, layout.bits, cols)


def _plain_codes(weight: Tensor | None, layout: Layout) -> Tensor:
    if weight is not None and weight.dtype == torch.float8_e4m3fn and layout.grid == "fp8":
        return level_indices(weight)
    if weight is not None and weight.dtype == torch.int8 and layout.grid == "int8":
        return (weight.to(torch.int16) + 128).to(torch.uint8)
    raise RequestError(f"the weight is not stored as {layout.grid} codes")


def _scale(stored: Tensor, rows: int, cols: int, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Scales float32 [rows, groups], with a group index where columns are left over."""
    if stored.dtype not in _SCALES:
        raise RequestError(f"scales of type {stored.dtype} cannot be read")
    if stored.numel() == 1:
        return stored.float().reshape(1, 1).repeat(rows, 1), None
    if stored.dim() == 1:
        stored = stored.unsqueeze(1)
    size = cols if layout.group_size == -1 else layout.group_size
    if stored.shape == (rows, -(-cols // size)) and not layout.blocks:
        if cols % size and not layout.desc_act:
            raise RequestError(f"groups of {size} do not divide {cols} inputs")
        return stored.float(), None
    return block_scales(stored, rows, cols, size)


def _zero(stored: Mapping[str, Tensor], scale: Tensor, layout: Layout) -> Tensor:
    """Zero points [rows, groups] of an asymmetric tensor."""
    found, (rows, groups) = stored.get("weight_zero_point"), scale.shape
    if found is None:
        raise RequestError("an asymmetric linear has no weight_zero_point")
    if "weight_packed" in stored:
        if found.shape != (words_for(rows, layout.bits), groups):
            raise RequestError("weight_zero_point and weight_scale do not agree on their shape")
        return unpack_bits(found.T, layout.bits, rows).T.contiguous()
    if found.dtype != torch.int8 or found.numel() not in (1, scale.numel()):
        raise RequestError("weight_zero_point and weight_scale do not agree on their shape")
    return (found.to(torch.int32) + 128).reshape(-1, 1).expand(rows, groups).contiguous()


def _stored_index(index: Tensor, cols: int, groups: int, layout: Layout) -> Tensor | None:
    """None where columns are grouped in order; RequestError where an index makes no sense."""
    if index.shape != (cols,) or int(index.min()) < 0 or int(index.max()) >= groups:
        raise RequestError(f"weight_g_idx does not place {cols} inputs in {groups} groups")
    size = cols if layout.group_size == -1 else layout.group_size
    index = index.to(torch.int32)
    in_order = torch.equal(index, torch.arange(cols, dtype=torch.int32) // size)
    return None if in_order and cols % size == 0 else index
