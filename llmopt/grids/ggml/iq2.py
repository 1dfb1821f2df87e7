"""IQ2_XXS, IQ2_XS and IQ2_S: vectors of 8 magnitudes, a scale for every 32 or 16 weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmopt.grids.ggml.base import Fields, VectorGrid
from llmopt.grids.ggml.bits import half_bytes, read_half
from llmopt.grids.ggml.rounding import Encoder
from llmopt.grids.ggml.signed import SignedGrid, eighth_sign, join, split
from llmopt.grids.ggml.superblock import join_bytes, nibbles, pairs, split_bytes

__all__ = ["GRIDS"]

#: d * (l + 1/2) / 4
_MULTIPLIERS = (torch.arange(16) + 0.5) / 4
_SEVENS = 7 * torch.arange(4)


class _Iq2Xxs(SignedGrid):
    """d, then for every 32 weights four bytes of entries and four of 7 signs each and l."""

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        signs, entries = split(codes, 1)
        words = ((signs & 127).view(-1, 8, 4) << _SEVENS).sum(2) | fields["l"] << 28
        data = torch.cat([entries.view(-1, 8, 4), split_bytes(words, 4).view(-1, 8, 4)], 2)
        return torch.cat(
            [half_bytes(fields["d"], self.spec.id), data.flatten(1).to(torch.uint8)], 1
        )

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in SignedGrid."""
        halves = data[:, 2:].reshape(-1, 8, 2, 4).long()
        words = join_bytes(halves[:, :, 1])
        signs = eighth_sign((words[:, :, None] >> _SEVENS & 127).flatten(1))
        fields = {"d": read_half(data, 0), "l": words >> 28}
        return fields, join(signs, halves[:, :, 0].flatten(1))


class _Iq2Xs(SignedGrid):
    """d, then a word of 9 bits of entry and 7 signs for every 8 weights, then l in 4 bits each."""

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        signs, entries = split(codes, 1)
        words = split_bytes(entries | (signs & 127) << 9, 2).to(torch.uint8)
        scales = pairs(fields["l"][:, 0::2], fields["l"][:, 1::2])
        return torch.cat([half_bytes(fields["d"], self.spec.id), words, scales], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in SignedGrid."""
        words = join_bytes(data[:, 2:66].reshape(-1, 32, 2).long())
        level = torch.stack(nibbles(data[:, 66:]), 2).flatten(1)
        return {"d": read_half(data, 0), "l": level}, join(eighth_sign(words >> 9), words & 511)


class _Iq2S(SignedGrid):
    """d, 8 low bits of each entry, the signs, 2 high bits of each entry, then l in 4 bits each."""

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        signs, entries = split(codes, 1)
        high = ((entries >> 8).view(-1, 8, 4) << 2 * torch.arange(4)).sum(2)
        data = torch.cat([entries & 255, signs, high], 1).to(torch.uint8)
        scales = pairs(fields["l"][:, 0::2], fields["l"][:, 1::2])
        return torch.cat([half_bytes(fields["d"], self.spec.id), data, scales], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in SignedGrid."""
        low, signs, high = torch.split(data[:, 2:74].long(), [32, 32, 8], 1)
        entries = low | (high[:, :, None] >> 2 * torch.arange(4) & 3).flatten(1) << 8
        level = torch.stack(nibbles(data[:, 74:]), 2).flatten(1)
        return {"d": read_half(data, 0), "l": level}, join(signs, entries)


_XXS = Encoder(
    type_id="IQ2_XXS",
    part=32,
    even=True,
    shells=2,
    reach=6,
    step=0.1,
    spread=1.0,
    floor=0.0,
    nothing=1e-15,
    stretch=1.0,
    again=True,
    fitted=True,
)
_XS = replace(_XXS, type_id="IQ2_XS", part=16, reach=9, again=False, fitted=False)
_S = replace(
    _XS,
    type_id="IQ2_S",
    even=False,
    shells=1,
    spread=2.0,
    floor=0.25,
    nothing=1e-8,
    stretch=0.9875,
)

GRIDS: dict[str, VectorGrid] = {
    "IQ2_XXS": _Iq2Xxs(_XXS, _MULTIPLIERS),
    "IQ2_XS": _Iq2Xs(_XS, _MULTIPLIERS),
    "IQ2_S": _Iq2S(_S, _MULTIPLIERS),
}
