"""The AWQ checkpoint layout of AutoAWQ, version "gemm".

For a linear of `in` inputs, `out` outputs and groups of g inputs, 4 bits a code:

    qweight int32 [in, out / 8]        codes, eight outputs to a word
    qzeros  int32 [in / g, out / 8]    zero points as they are, in the same order
    scales  float16 [in / g, out]

Nibble i of a word, lowest first, belongs to output 0, 2, 4, 6, 1, 3, 5 or 7 of its eight. Kernels
compute (code - zero) * scale: a symmetric tensor is stored with zero points of 8, and a negative
scale, which our symmetric grid may use, is a number like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.bits import pack_bits, unpack_bits
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.model.layout import Layout

_BITS = 4
_LANES = 32 // _BITS
#: nibble -> which of the eight outputs it belongs to
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_REVERSED = tuple(ORDER.index(i) for i in range(_LANES))


@dataclass(frozen=True)
class Codec:
    """This layout as the block walk's sink wants it; it comes in one version."""

    version: str | None = None

    def accepts(self, tensor: QuantizedTensor) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""
        params, rows = tensor.params, tensor.codes.shape[0]
        if tensor.grid != "int4":
            return f"AWQ files hold integers of 4 bits, not {tensor.grid}"
        if tensor.activations is not None:
            return f"AWQ files cannot say that activations are {tensor.activations}"
        if rows % _LANES:
            return f"AWQ files pack {_LANES} outputs together, which does not divide {rows}"
        if params.group_index is not None:
            return "AWQ files have no group index: inputs are grouped in their stored order"
        if not bool(params.scale.isfinite().all()):
            return "a scale is not finite"
        if not torch.equal(params.scale.half().float(), params.scale):
            return "a scale is not exact in float16"
        lowest, highest = (int(bound) for bound in params.zero.aminmax())
        if lowest < 0 or highest >= 2**_BITS:
            return f"a zero point is outside 0 to {2**_BITS - 1}"
        return None

    def pack(self, tensor: QuantizedTensor) -> dict[str, Tensor]:
        """The stored tensors by the suffix of their names; `accepts` returned None."""
        return {
            "qweight": _pack(tensor.codes.T),
            "qzeros": _pack(tensor.params.zero.T),
            "scales": tensor.params.scale.T.to(torch.float16).contiguous(),
        }

    def unpack(self, stored: Mapping[str, Tensor], layout: Layout) -> QuantizedTensor:
        """What was packed; RequestError where the parts do not fit each other."""
        qweight, qzeros, scales = stored["qweight"], stored["qzeros"], stored["scales"]
        cols, groups = qweight.shape[0], scales.shape[0]
        size = cols if layout.group_size == -1 else layout.group_size
        if groups != -(-cols // size) or cols % size:
            raise RequestError(f"{cols} inputs in groups of {size} do not need {groups} scales")
        rows = qweight.shape[1] * _LANES
        if scales.shape != (groups, rows) or qzeros.shape != (groups, rows // _LANES):
            raise RequestError("qweight, qzeros and scales do not agree on 4 bits")
        params = AffineParams(
            bits=_BITS,
            group_size=layout.group_size,
            symmetric=layout.symmetric,
            scale=scales.T.float().contiguous(),
            zero=_unpack(qzeros).T.to(torch.int32).contiguous(),
        )
        codes = _unpack(qweight).T.contiguous()
        return QuantizedTensor(grid="int4", codes=codes, params=params)


def _pack(values: Tensor) -> Tensor:
    """[n, outputs] as int32 words [n, outputs / 8]."""
    n = values.shape[0]
    return pack_bits(values.reshape(n, -1, _LANES)[:, :, ORDER].reshape(n, -1), _BITS)


def _unpack(words: Tensor) -> Tensor:
    """What `_pack` was given, as uint8."""
    n, width = words.shape
    codes = unpack_bits(words, _BITS, width * _LANES)
    return codes.reshape(n, width, _LANES)[:, :, _REVERSED].reshape(n, -1)
