"""IQ2 and IQ3: vectors of magnitudes from a codebook, each weight with a sign of its own.

A code stands for 8 weights: their signs in its lowest 8 bits (1 is minus), then the entries of the
codebook, 12 bits each: one of dimension 8, or two of dimension 4. Some types store seven signs; the
eighth makes the number of minuses even. (d, l) give the scale of each part of 16 or 32 weights.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from llmopt.grids.ggml.base import Fields
from llmopt.grids.ggml.bits import to_half
from llmopt.grids.ggml.codebook import Codebook, codebook, nearest_entries, turn_signs
from llmopt.grids.ggml.rounding import Encoder
from llmopt.grids.ggml.scaled import Space, fit_scales, search
from llmopt.grids.ggml.superblock import SuperBlocks

__all__ = ["SignedGrid", "eighth_sign", "join", "split"]

_BITS = torch.arange(8)
#: the largest magnitude of a part is to meet the largest level times one of these
_STARTS = torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25])
#: the codebook's gaps make other scales good than the lattice's
_AROUND = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


class SignedGrid(SuperBlocks):
    """A VectorGrid of the kind above.

    encoder: ggml's own. multipliers: float32 [16], what each l stands for.
    """

    vector = 8

    def __init__(self, encoder: Encoder, multipliers: Tensor) -> None:
        super().__init__(encoder.type_id)
        self.encoder, self.multipliers = encoder, multipliers
        self.part, self.even = encoder.part, encoder.even

    @property
    def book(self) -> Codebook:
        return codebook(self.type_id)

    @abstractmethod
    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """Fields and codes of uint8 [n, nbytes]."""

    def decode_blocks(self, data: Tensor) -> Tensor:
        """As in SuperBlocks."""
        fields, codes = self.unpack(data)
        return (self.scales(fields)[:, :, None] * self._units(codes)).flatten(1)

    def scales(self, fields: Fields) -> Tensor:
        """float32 [n, width / 8]: what the units of each vector are multiplied by."""
        scale = fields["d"][:, None] * self.multipliers[fields["l"]]
        return scale.repeat_interleave(self.part // 8, 1)

    def _units(self, codes: Tensor) -> Tensor:
        """float32 [..., 8]: what codes [...] stand for at scale 1."""
        dim = self.book.levels.shape[1]
        entries = codes[..., None] >> 8 + 12 * torch.arange(8 // dim) & 4095
        signs = 1 - 2 * (codes[..., None] >> _BITS & 1)
        return self.book.levels[entries].flatten(-2) * signs

    def reference(self, x: Tensor, importance: Tensor | None) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        found = self.encoder.round(x, importance)
        return {"d": to_half(found.d), "l": found.l}, join(found.signs, found.entries)

    def best(self, x: Tensor, importance: Tensor) -> tuple[Fields, Tensor]:
        """As in SuperBlocks."""
        shape = (len(x), -1, self.part)
        levels = self.book.possible
        space = Space(
            multipliers=self.multipliers,
            levels=torch.cat([-levels.flip(0), levels]),
            starts=levels[-1] * _STARTS,
            around=_AROUND,
        )
        found = search(x.reshape(shape), importance.reshape(shape), self._nearest_part, space)
        return {"d": found.d, "l": found.l}, found.codes.flatten(1)

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        """As in VectorGrid."""
        return self.best(blocks, importance.expand_as(blocks))[0]

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        """The fields that lose least when the codes [n, width / 8] are to stay as they are."""
        shape = (len(blocks), -1, self.part)
        units = self._units(codes).view(shape)
        weight, x = importance.expand_as(blocks).reshape(shape), blocks.reshape(shape)
        d, level = fit_scales(x, weight, units, self.multipliers)
        return {"d": d, "l": level}

    def choose(
        self,
        fields: Fields,
        index: int,
        x: Tensor,
        importance: Tensor,
        metric: Tensor | None = None,  # noqa: ARG002  # twice the time for 0.4% of the loss
    ) -> tuple[Tensor, Tensor]:
        """As in VectorGrid."""
        scale = self.scales(fields)[:, index]
        codes, units = self._nearest(x, importance.expand_as(x), scale)
        return codes, scale[:, None] * units

    def _nearest_part(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        count = self.part // 8
        codes, units = self._nearest(
            x.reshape(-1, 8), weight.reshape(-1, 8), scale.repeat_interleave(count)
        )
        return codes.view(-1, count), units.view(x.shape)

    def _nearest(self, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [m] and units [m, 8] of the least weighed squared error at scales [m]."""
        levels = self.book.levels
        minus = x < 0
        # weight (s g - |x|)^2 without what does not depend on the entry g
        square = (weight * (scale * scale)[:, None]).view(-1, levels.shape[1])
        cross = (weight * x.abs() * (-2 * scale)[:, None]).view(-1, levels.shape[1])
        entries, value = nearest_entries(levels, square, cross)
        if self.even:
            minus, entries = self._turn(minus, square, cross, entries, value)
        codes = join((minus << _BITS).sum(1), entries)
        return codes, self._units(codes)

    def _turn(
        self, minus: Tensor, square: Tensor, cross: Tensor, entries: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Signs and entries with an even number of minuses in each vector."""
        levels = self.book.levels
        count = 8 // levels.shape[1]
        (odd,) = torch.nonzero(minus.sum(1) % 2, as_tuple=True)
        rows = (odd[:, None] * count + torch.arange(count)).view(-1)
        changed, place = turn_signs(levels, square[rows], cross[rows], entries[rows], value[rows])
        minus, entries = minus.clone(), entries.clone()
        minus[odd, place] ^= True
        entries[rows] = changed
        return minus, entries


def join(signs: Tensor, entries: Tensor) -> Tensor:
    """Codes from signs int64 [..., vectors] and entries int64 [..., one or two a vector]."""
    parts = entries.view(*signs.shape, -1)
    return signs | (parts << 8 + 12 * torch.arange(parts.shape[-1])).sum(-1)


def split(codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Signs [n, vectors] and entries [n, vectors * count] of codes [n, vectors]."""
    entries = codes[:, :, None] >> 8 + 12 * torch.arange(count) & 4095
    return codes & 255, entries.flatten(1)


def eighth_sign(seven: Tensor) -> Tensor:
    """Eight signs from seven: the highest makes the number of minuses even."""
    parity = (seven[..., None] >> _BITS & 1).sum(-1) & 1
    return seven | parity << 7
