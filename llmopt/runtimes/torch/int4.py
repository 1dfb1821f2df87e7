"""Products of a few rows with packed 4-bit weights, by torch's CPU kernel.

The kernel computes w = (code - 8) * scale + offset with activations, scales and offsets in
bfloat16 and float32 sums. It reads an eighth of the bytes that a float32 weight has, which is what
decoding token by token waits for. Against the exact weights a product differs by about 3e-3 of
its size, so generation uses it and measurements of quality do not. (Given float32 scales it is
exact to 4e-7, but runs scalar code, slower than a dense product.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.grids.base import AffineParams, QuantizedTensor

#: the group sizes that the kernel has code for, best first
_GROUPS = (256, 128, 64, 32)
#: output rows that the kernel's layout packs together
_ROWS = 16
_INNER_TILES = 1  # ignored on CPU; the operator wants it


@dataclass(frozen=True)
class Int4Product:
    """A weight in the kernel's layout, which belongs to the CPU at hand.

    `terms` are (packed codes, scales and offsets [groups, rows, 2]) whose products add up: one,
    or two for 8-bit codes, the high and the low half. `order` sorts columns by their group.
    """

    terms: tuple[tuple[Tensor, Tensor], ...]
    group: int
    order: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, cols] of any float dtype -> [rows, outputs] of that dtype."""
        half = x.to(torch.bfloat16)
        if self.order is not None:
            half = half[:, self.order]
        half = half.contiguous()
        product = self._product(half, *self.terms[0]).to(x.dtype)
        for term in self.terms[1:]:
            product += self._product(half, *term)
        return product

    def _product(self, x: Tensor, packed: Tensor, offsets: Tensor) -> Tensor:
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self.group, offsets)
        return product

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that it keeps in memory."""
        kept = [tensor for term in self.terms for tensor in term]
        return kept if self.order is None else [*kept, self.order]


def int4_product(tensor: QuantizedTensor) -> Int4Product | None:
    """The fast product of a weight on the CPU, None where the kernel has no code for it."""
    params, (rows, cols) = tensor.params, tensor.codes.shape
    groups = params.scale.shape[1]
    size = cols // groups
    fitting = [group for group in _GROUPS if size % group == 0]
    if cols % groups or not fitting or rows % _ROWS or not tensor.grid.startswith("int"):
        return None
    codes, order = tensor.codes, None
    if params.group_index is not None:
        index = params.group_index.to(torch.int64)
        if not bool((torch.bincount(index, minlength=groups) == size).all()):
            return None
        order = torch.argsort(index, stable=True)
        codes = codes[:, order]
    repeats = size // fitting[0]
    terms = tuple(
        _pack(part, scale.repeat_interleave(repeats, 1), offset.repeat_interleave(repeats, 1))
        for part, scale, offset in _halves(codes, params)
    )
    return Int4Product(terms, fitting[0], order)


def _halves(codes: Tensor, params: AffineParams) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(codes below 16, scale, offset) whose (code - 8) * scale + offset add up to the weight.

    Codes are moved so that the middle of their range is the kernel's 8: an offset that has to
    undo a distance would bring its rounding with it.
    """
    scale, zero = params.scale, params.zero
    if params.bits <= 4:
        middle = 2 ** (params.bits - 1)
        return [(codes + (8 - middle), scale, (middle - zero) * scale)]
    high = (codes >> 4, 16 * scale, torch.zeros_like(scale))
    return [high, (codes & 15, scale, (16 * 8 + 8 - zero) * scale)]


def _pack(codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        codes.to(torch.int32).contiguous(), _INNER_TILES
    )
    pairs = torch.stack([scale, offset], dim=-1).transpose(0, 1)
    return packed, pairs.to(torch.bfloat16).contiguous()
