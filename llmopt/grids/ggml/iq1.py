"""IQ1_S and IQ1_M: vectors of 8 from {-1, 0, 1}, moved up or down by an eighth.

IQ1_S has a scale and a shift for every 32 weights, IQ1_M a scale for 16 and a shift for 8.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from llmopt.grids.ggml.base import Fields, VectorGrid
from llmopt.grids.ggml.bits import half_bytes, read_half, to_half
from llmopt.grids.ggml.codebook import codebook, lowest, nearest_entries
from llmopt.grids.ggml.neighbours import running_sum
from llmopt.grids.ggml.scaled import Space, fit_scales, search
from llmopt.grids.ggml.splits import SHIFT, Split, Splitter
from llmopt.grids.ggml.superblock import SuperBlocks, join_bytes, split_bytes

__all__ = ["GRIDS"]

#: what each l stands for
_MULTIPLIERS = torch.arange(1.0, 16.0, 2.0)
_SPACE = Space(
    multipliers=_MULTIPLIERS,
    levels=torch.tensor([-1.0, 0.0, 1.0]),
    starts=torch.tensor([1.0, 1.25, 1.6, 2.0, 2.6]),
)
_THREES = 3 * torch.arange(4)


class _Ternary(SuperBlocks):
    """Codes are entries in 11 bits and, above them, whether a shift is down."""

    vector = 8

    def __init__(self, splitter: Splitter) -> None:
        super().__init__(splitter.type_id)
        self.splitter, self.part = splitter, splitter.part

    @property
    def levels(self) -> Tensor:
        return codebook(self.type_id).levels

    @abstractmethod
    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """Fields and codes of uint8 [n, nbytes]."""

    @abstractmethod
    def nearest(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As scaled.NearestLevels."""

    def decode_blocks(self, data: Tensor) -> Tensor:
        """As in SuperBlocks."""
        fields, codes = self.unpack(data)
        return (self.scales(fields)[:, :, None] * self._units(codes)).flatten(1)

    def scales(self, fields: Fields) -> Tensor:
        """float32 [n, width / 8]: what the units of each vector are multiplied by."""
        scale = fields["d"][:, None] * _MULTIPLIERS[fields["l"]]
        return scale.repeat_interleave(self.part // 8, 1)

    def _units(self, codes: Tensor) -> Tensor:
        return self.levels[codes & 2047] + (SHIFT - 2 * SHIFT * (codes >> 11))[..., None]

    def reference(self, x: Tensor, importance: Tensor | None) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        weight = self.splitter.weight(x, importance)
        found = self.splitter.split(x.reshape(-1, self.part), weight.view(-1, self.part))
        scale = found.scale.view(len(x), -1)
        d = scale.amax(1) / 15
        inverse = torch.where(d > 0, 1 / d, 0.0)[:, None]
        level = (0.5 * (inverse * scale - 1)).round().clamp(0, 7).long()
        codes = self._codes(found).view(len(x), -1)
        return self.settle(x, weight, {"d": d, "l": level}, codes)

    def _codes(self, found: Split) -> Tensor:
        return (
            found.entries
            | found.down.repeat_interleave(self.part // 8 // self.splitter.groups, 1) << 11
        )

    @abstractmethod
    def settle(
        self, x: Tensor, weight: Tensor, fields: Fields, codes: Tensor
    ) -> tuple[Fields, Tensor]:
        """Fields and codes that ggml's encoder ends with; until then d is the float32 scale."""

    def best(self, x: Tensor, importance: Tensor) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        shape = (len(x), -1, self.part)
        found = search(x.reshape(shape), importance.reshape(shape), self.nearest, _SPACE)
        return self.fields(found.d, found.l, found.codes.flatten(1)), found.codes.flatten(1)

    def fields(self, d: Tensor, level: Tensor, codes: Tensor) -> Fields:  # noqa: ARG002
        """What is stored beside the codes."""
        return {"d": d, "l": level}

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        """As in VectorGrid."""
        return self.best(blocks, importance.expand_as(blocks))[0]

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        """As in VectorGrid."""
        shape = (len(blocks), -1, self.part)
        units = self._units(codes).view(shape)
        weight, x = importance.expand_as(blocks).reshape(shape), blocks.reshape(shape)
        return self.fields(*fit_scales(x, weight, units, _MULTIPLIERS), codes)

    def choose(
        self,
        fields: Fields,
        index: int,
        x: Tensor,
        importance: Tensor,
        metric: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As in VectorGrid."""
        scale = self.scales(fields)[:, index]
        costs = (
            self.both(x, importance.expand_as(x), scale)
            if metric is None
            else self.both_by(metric, x, scale)
        )
        codes = self.pick(fields, index, *costs)
        return codes, scale[:, None] * self._units(codes)

    @abstractmethod
    def pick(self, fields: Fields, index: int, up: _Found, down: _Found) -> Tensor:
        """The codes [n] of what was found at either shift for the vectors at `index`."""

    def both_by(self, metric: Tensor, x: Tensor, scale: Tensor) -> tuple[_Found, _Found]:
        """As `both`, where an error e costs e^T metric e."""
        terms = torch.cat([(scale * scale)[:, None], x @ metric * (-2 * scale)[:, None]], 1)
        found = []
        for shift in (SHIFT, -SHIFT):
            levels = self.levels + shift
            own = (levels @ metric * levels).sum(1, keepdim=True)
            found.append(lowest(terms, torch.cat([own, levels], 1)))
        (up, up_cost), (down, down_cost) = found
        return (up, up_cost), (down | 1 << 11, down_cost)

    def both(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[_Found, _Found]:
        """Codes [m] and costs [m] of vectors [m, 8], moved up and moved down."""
        square = weight * (scale * scale)[:, None]
        cross = weight * x * (-2 * scale)[:, None]
        up, up_cost = nearest_entries(self.levels + SHIFT, square, cross)
        down, down_cost = nearest_entries(self.levels - SHIFT, square, cross)
        return (up, up_cost), (down | 1 << 11, down_cost)


_Found = tuple[Tensor, Tensor]


class _Iq1S(_Ternary):
    """d, 8 low bits of each entry, then for every 32 weights the rest, l and the shift."""

    def nearest(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As in _Ternary."""
        (up, up_cost), (down, down_cost) = self.both(
            x.reshape(-1, 8), weight.reshape(-1, 8), scale.repeat_interleave(4)
        )
        lower = down_cost.view(-1, 4).sum(1) < up_cost.view(-1, 4).sum(1)
        codes = torch.where(lower[:, None], down.view(-1, 4), up.view(-1, 4))
        return codes, self._units(codes).view(x.shape)

    def pick(self, fields: Fields, index: int, up: _Found, down: _Found) -> Tensor:
        """As in _Ternary."""
        return torch.where(fields["down"][:, index // 4] > 0, down[0], up[0])

    def fields(self, d: Tensor, level: Tensor, codes: Tensor) -> Fields:
        """As in _Ternary."""
        return {"d": d, "l": level, "down": codes[:, ::4] >> 11}

    def settle(
        self, x: Tensor, weight: Tensor, fields: Fields, codes: Tensor
    ) -> tuple[Fields, Tensor]:
        """As in _Ternary."""
        del x, weight
        return self.fields(to_half(fields["d"] * 1.125), fields["l"], codes), codes

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        high = ((codes >> 8 & 7).view(-1, 8, 4) << _THREES).sum(2)
        words = split_bytes(high | fields["l"] << 12 | fields["down"] << 15, 2)
        data = torch.cat([codes & 255, words], 1).to(torch.uint8)
        return torch.cat([half_bytes(fields["d"], self.spec.id), data], 1)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in _Ternary."""
        words = join_bytes(data[:, 34:].reshape(-1, 8, 2).long())
        high = words[:, :, None] >> _THREES & 7
        down = words >> 15
        codes = data[:, 2:34].long() | (high << 8 | down[:, :, None] << 11).flatten(1)
        return {"d": read_half(data, 0), "l": words >> 12 & 7, "down": down}, codes


class _Iq1M(_Ternary):
    """8 low bits of each entry, half a byte each with the rest and the shift, then l in 3 bits each
    and, in the gaps between four of them, d."""

    def nearest(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As in _Ternary."""
        up, down = self.both(x.reshape(-1, 8), weight.reshape(-1, 8), scale.repeat_interleave(2))
        codes = self.pick({}, 0, up, down).view(-1, 2)
        return codes, self._units(codes).view(x.shape)

    def pick(self, fields: Fields, index: int, up: _Found, down: _Found) -> Tensor:
        """As in _Ternary."""
        del fields, index
        return torch.where(down[1] < up[1], down[0], up[0])

    def settle(
        self, x: Tensor, weight: Tensor, fields: Fields, codes: Tensor
    ) -> tuple[Fields, Tensor]:
        """As in _Ternary."""
        multiplier = _MULTIPLIERS[fields["l"]].repeat_interleave(2, 1)[:, :, None]
        level = (self._units(codes) * multiplier).flatten(1)
        linear, square = running_sum(weight * level * x), running_sum(weight * level * level)
        nothing = fields["d"] == 0
        d = torch.where(square > 0, linear / square, fields["d"]) * torch.tensor(1.1125)
        return {"d": to_half(d.masked_fill(nothing, 0.0)), "l": fields["l"]}, codes

    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As in VectorGrid."""
        rest = (codes >> 8).view(-1, 16, 2)
        half = join_bytes(half_bytes(fields["d"], self.spec.id)[:, None].long())
        words = (fields["l"].view(-1, 4, 4) << _THREES).sum(2)
        words = words | (half >> 4 * torch.arange(4) & 15) << 12
        data = torch.cat(
            [codes & 255, rest[:, :, 0] | rest[:, :, 1] << 4, split_bytes(words, 2)], 1
        )
        return data.to(torch.uint8)

    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """As in _Ternary."""
        low, rest, scales = torch.split(data.long(), [32, 16, 8], 1)
        words = join_bytes(scales.view(-1, 4, 2))
        half = ((words >> 12) << 4 * torch.arange(4)).sum(1, keepdim=True)
        d = read_half(split_bytes(half, 2).to(torch.uint8), 0)
        high = torch.stack([rest & 15, rest >> 4], 2).flatten(1)
        level = (words[:, :, None] >> _THREES & 7).flatten(1)
        return {"d": d, "l": level}, low | high << 8


GRIDS: dict[str, VectorGrid] = {
    "IQ1_S": _Iq1S(Splitter(type_id="IQ1_S", part=32, groups=1, nothing=1e-12)),
    "IQ1_M": _Iq1M(Splitter(type_id="IQ1_M", part=16, groups=2, nothing=1e-7)),
}
