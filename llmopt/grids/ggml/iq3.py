"""IQ3_XXS and IQ3_S: vectors of 4 magnitudes, two of which share 8 signs, and a scale for 32."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmopt.grids.ggml.base import Fields, VectorGrid
from llmopt.grids.ggml.bits import half_bytes, read_half, to_half
from llmopt.grids.ggml.rounding import Encoder
from llmopt.grids.ggml.signed import SignedGrid, eighth_sign, join, split
from llmopt.grids.ggml.superblock import join_bytes, nibbles, pairs, split_bytes

__all__ = ["GRIDS"]

_SEVENS = 7 * torch.arange(4)
_BITS = torch.arange(8)


class _Iq3Xxs(SignedGrid):
    """d, a byte of entry for every 4 weights, then for every 32 four times 7 signs and l."""

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        signs, entries = split(codes, 2)
        words = ((signs & 127).view(-1, 8, 4) << _SEVENS).sum(2) | fields["l"] << 28
        data = torch.cat([entries, split_bytes(words, 4)], 1).to(torch.uint8)
        return torch.cat([half_bytes(fields["d"], self.spec.id), data], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in SignedGrid."""
        words = join_bytes(data[:, 66:].reshape(-1, 8, 4).long())
        signs = eighth_sign((words[:, :, None] >> _SEVENS & 127).flatten(1))
        return {"d": read_half(data, 0), "l": words >> 28}, join(signs, data[:, 2:66].long())


class _Iq3S(SignedGrid):
    """d, 8 low bits of each entry, then each one's highest bit, the signs, and l in 4 bits each."""

    def reference(self, x: Tensor, importance: Tensor | None) -> tuple[Fields, Tensor]:
        """As in SuperBlocks.

        ggml's encoder does not advance past a part of zeros in a block that has others: the low
        bits of entries and the signs of later parts come to stand one part too early.
        """
        found = self.encoder.round(x, importance)
        order = found.empty.long().argsort(dim=1, stable=True)[:, :, None]
        entries = found.entries.view(len(x), 8, 8)
        low = (entries & 255).gather(1, order.expand(-1, -1, 8))
        signs = found.signs.view(len(x), 8, 4).gather(1, order.expand(-1, -1, 4))
        codes = join(signs.flatten(1), (entries & 256 | low).flatten(1))
        return {"d": to_half(found.d), "l": found.l}, codes

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        signs, entries = split(codes, 2)
        high = ((entries >> 8).view(-1, 8, 8) << _BITS).sum(2)
        data = torch.cat([entries & 255, high, signs], 1).to(torch.uint8)
        scales = pairs(fields["l"][:, 0::2], fields["l"][:, 1::2])
        return torch.cat([half_bytes(fields["d"], self.spec.id), data, scales], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in SignedGrid."""
        low, high, signs = torch.split(data[:, 2:106].long(), [64, 8, 32], 1)
        entries = low | (high[:, :, None] >> _BITS & 1).flatten(1) << 8
        level = torch.stack(nibbles(data[:, 106:]), 2).flatten(1)
        return {"d": read_half(data, 0), "l": level}, join(signs, entries)


_XXS = Encoder(
    type_id="IQ3_XXS",
    part=32,
    even=True,
    shells=2,
    reach=15,
    step=0.2,
    spread=2.0,
    floor=0.0,
    nothing=1e-8,
    stretch=1.0125,
    again=False,
)
_S = replace(
    _XXS, type_id="IQ3_S", even=False, shells=3, reach=9, nothing=0.0, stretch=1.033, again=True
)

GRIDS: dict[str, VectorGrid] = {
    "IQ3_XXS": _Iq3Xxs(_XXS, (torch.arange(16) + 0.5) / 2),
    "IQ3_S": _Iq3S(_S, torch.arange(1.0, 32.0, 2.0)),
}
