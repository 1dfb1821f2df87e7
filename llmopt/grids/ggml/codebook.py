"""The codebooks of ggml's IQ types, and the search among all of their entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Codebook", "codebook", "nearest_entries"]

#: costs that are looked at together: what fits a core's cache
_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """levels: float32 [G, dim], what decoding multiplies by. places: int64 [G, dim], which of the
    `base` possible levels each of them is."""

    levels: Tensor
    places: Tensor
    base: int

    def point(self, places: Tensor) -> Tensor:
        """Numbers of lattice points, int64 [m], for places int64 [m, dim]."""
        return (places * self.base ** torch.arange(self.places.shape[1])).sum(1)


@lru_cache
def codebook(type_id: str) -> Codebook:
    """The codebook of a type."""
    from gguf import quants

    source = getattr(quants, type_id)
    source.init_grid()
    levels = torch.tensor(source.grid, dtype=torch.float32).view(source.grid_shape)
    possible = torch.tensor(source.grid_map, dtype=torch.float32)
    return Codebook(levels=levels, places=torch.bucketize(levels, possible), base=len(possible))


def nearest_entries(
    levels: Tensor, square: Tensor, cross: Tensor, odd: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Entries int64 [m] of least sum of square * level^2 + cross * level, both [m, dim].

    odd: bool [vectors], where one of the signs of a vector must be turned against its weight; a
    vector is 8 / dim consecutive rows. Then also bool [vectors, 8], the signs that cost least to
    turn. Turning a sign adds -2 * cross * level; cross must not be positive.
    """
    table = torch.cat([levels * levels, levels], 1).T.contiguous()
    terms = torch.cat([square, cross], 1)
    value, entries = torch.empty(len(terms)), torch.empty(len(terms), dtype=torch.long)
    step = max(1, _AT_ONCE // len(levels))
    for start in range(0, len(terms), step):
        part = slice(start, start + step)
        value[part], entries[part] = _least(terms[part] @ table)
    if odd is None:
        return entries, None
    return entries, _turn(levels, table, terms, value, entries, odd)


def _turn(
    levels: Tensor, table: Tensor, terms: Tensor, value: Tensor, entries: Tensor, odd: Tensor
) -> Tensor:
    """Changes entries where a turned sign wants another one; bool [vectors, 8], what to turn."""
    dim = levels.shape[1]
    flip = torch.zeros(len(odd), 8, dtype=torch.bool)
    (vectors,) = odd.nonzero(as_tuple=True)
    for some in vectors.split(max(1, _AT_ONCE * dim // (8 * len(levels)))):
        rows = (some[:, None] * (8 // dim) + torch.arange(8 // dim)).view(-1)
        added = terms[rows, dim:] * -2
        cheapest = added[:, :1] * levels[:, 0]
        for i in range(1, dim):
            torch.minimum(cheapest, added[:, i : i + 1] * levels[:, i], out=cheapest)
        turned, entry = _least(torch.addmm(cheapest, terms[rows], table))
        best = (turned - value[rows]).view(len(some), -1).argmin(1)
        row = torch.arange(len(some)) * (8 // dim) + best
        entries[rows[row]] = entry[row]
        place = (added[row] * levels[entry[row]]).argmin(1)
        flip[some, best * dim + place] = True
    return flip


def _least(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of each row of [m, G] and where it is; G is a power of two from 256."""
    m, size = cost.shape
    # torch finds minima along a middle dimension of many runs much faster than positions
    parts = cost.view(m, -1, 32 if size <= 512 else 64)
    column = parts.amin(1).argmin(1)
    value, row = parts[torch.arange(m), :, column].min(1)
    return value, row * parts.shape[2] + column
