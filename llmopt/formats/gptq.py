"""The GPTQ checkpoint layout of AutoGPTQ and GPTQModel.

For a linear of `in` inputs, `out` outputs, b bits and groups of g inputs:

    qweight int32 [in * b / 32, out]       codes, packed along in, lowest bits first
    qzeros  int32 [in / g, out * b / 32]   zero points, packed along out; version 1 stores zero - 1
    scales  float16 [in / g, out]
    g_idx   int32 [in]                     the group of each input

32 codes fill b words as one stream of bits, so with 3 bits some codes straddle two words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.bits import LANES, pack_bits, unpack_bits
from llmopt.formats.gptq_config import BITS, quantization_config
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout
from llmopt.specs.formats import GPTQ_V1

__all__ = ["Codec", "accepts", "pack", "quantization_config", "unpack"]


@dataclass(frozen=True)
class Codec:
    """This layout in one version, as the block walk's sink wants it."""

    version: str | None = GPTQ_V1

    def accepts(self, tensor: QuantizedTensor) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""
        return accepts(tensor, self.version)

    def pack(self, tensor: QuantizedTensor) -> dict[str, Tensor]:
        """The stored tensors by the suffix of their names."""
        return pack(tensor, self.version)

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> QuantizedTensor:
        """What `pack` was given."""
        return unpack(stored, layout, self.version)


def accepts(tensor: QuantizedTensor, version: str | None) -> str | None:
    """None where the layout holds the tensor exactly, else the reason why not."""
    params, (rows, cols) = tensor.params, tensor.codes.shape
    if tensor.grid not in {f"int{bits}" for bits in BITS}:
        return f"GPTQ files hold integers of 2, 3, 4 or 8 bits, not {tensor.grid}"
    if rows % LANES or cols % LANES:
        return f"GPTQ files pack {LANES} values together, which does not divide {rows} x {cols}"
    if not torch.equal(params.scale.half().float(), params.scale):
        return "a scale is not exact in float16"
    if not bool(params.scale.isfinite().all()):
        return "a scale is not finite"
    lowest, highest = (int(bound) for bound in params.zero.aminmax())
    if version == GPTQ_V1 and lowest < 1:
        return "a zero point is 0, and version 1 stores zero - 1"
    if lowest < 0 or highest >= 2**params.bits:
        return f"a zero point is outside 0 to {2**params.bits - 1}"
    return None


def pack(tensor: QuantizedTensor, version: str | None) -> dict[str, Tensor]:
    """The stored tensors of a linear by suffix; `accepts` must have returned None."""
    params, cols = tensor.params, tensor.codes.shape[1]
    zero = params.zero - 1 if version == GPTQ_V1 else params.zero
    group_index = params.group_index
    if group_index is None:
        group_index = _consecutive(cols, cols // params.scale.shape[1])
    return {
        "qweight": pack_bits(tensor.codes, params.bits).T.contiguous(),
        "qzeros": pack_bits(zero.T, params.bits),
        "scales": params.scale.T.to(torch.float16).contiguous(),
        "g_idx": group_index.to(torch.int32),
    }


def unpack(stored: Mapping[str, Tensor], layout: Layout, version: str | None) -> QuantizedTensor:
    """A stored linear as codes and parameters; raises RequestError where the parts do not fit.

    A group index that only says i // group_size is dropped where all groups are full. Version
    1's zero - 1 wraps around in its bits as AutoGPTQ reads it.
    """
    bits, scales = layout.bits, stored["scales"]
    words, rows = stored["qweight"].shape
    cols, groups = words * 32 // bits, scales.shape[0]
    if (words * 32) % (bits * LANES) or rows % LANES:
        raise RequestError(f"qweight of shape {words} x {rows} does not hold {bits}-bit codes")
    if scales.shape != (groups, rows) or stored["qzeros"].shape != (groups, rows * bits // 32):
        raise RequestError(f"qweight, qzeros and scales do not agree on {bits} bits")
    zero = unpack_bits(stored["qzeros"], bits).T.to(torch.int32)
    if version == GPTQ_V1:
        zero = (zero + 1) & (2**bits - 1)
    params = AffineParams(
        bits=bits,
        group_size=layout.group_size,
        symmetric=layout.symmetric,
        scale=scales.T.float().contiguous(),
        zero=zero.contiguous(),
        group_index=_group_index(stored.get("g_idx"), cols, groups, layout.group_size),
    )
    codes = unpack_bits(stored["qweight"].T, bits)
    return QuantizedTensor(grid=f"int{bits}", codes=codes, params=params)


def _consecutive(cols: int, size: int) -> Tensor:
    return torch.arange(cols, dtype=torch.int32) // size


def _group_index(g_idx: Tensor | None, cols: int, groups: int, size: int) -> Tensor | None:
    """None where whole groups are in order; RequestError where an index makes no sense."""
    size = cols if size == -1 else size
    in_order = _consecutive(cols, size)
    if g_idx is None or torch.equal(g_idx.to(torch.int32), in_order):
        if groups != -(-cols // size):
            raise RequestError(f"{cols} inputs in groups of {size} do not need {groups} scales")
        return in_order if cols % size else None  # the last group has what is left
    if g_idx.shape != (cols,) or int(g_idx.min()) < 0 or int(g_idx.max()) >= groups:
        raise RequestError(f"g_idx does not give each of {cols} inputs one of {groups} groups")
    return g_idx.to(torch.int32)
