"""The codebooks of ggml's IQ types, and the search among all of their entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Codebook", "codebook", "nearest_entries", "turn_signs"]

#: costs that are looked at together: what fits a core's cache
_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """levels: float32 [G, dim], what decoding multiplies by. possible: float32, the levels that
    there are, ascending. places: int64 [G, dim], which of them each level is."""

    levels: Tensor
    possible: Tensor
    places: Tensor

    @property
    def base(self) -> int:
        """How many levels there are."""
        return len(self.possible)

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
    places = torch.bucketize(levels, possible)
    return Codebook(levels=levels, possible=possible, places=places)


def nearest_entries(levels: Tensor, square: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Entries int64 [m] of least sum of square * level^2 + cross * level, both [m, dim], and it."""
    table = torch.cat([levels * levels, levels], 1).T.contiguous()
    terms = torch.cat([square, cross], 1)
    value, entries = torch.empty(len(terms)), torch.empty(len(terms), dtype=torch.long)
    step = _AT_ONCE // len(levels)
    buffer = torch.empty(step, len(levels))
    for start in range(0, len(terms), step):
        part = slice(start, start + step)
        cost = torch.mm(terms[part], table, out=buffer[: len(terms) - start])
        value[part], entries[part] = _least(cost)
    return entries, value


def turn_signs(
    levels: Tensor, square: Tensor, cross: Tensor, entries: Tensor, value: Tensor, odd: Tensor
) -> tuple[Tensor, Tensor]:
    """What nearest_entries found, changed where one sign of 8 must be the opposite of its weight's.

    odd: bool [vectors]; a vector is 8 / dim consecutive rows. Turning a sign adds -2 * cross *
    level; cross is not positive. Entries, and bool [vectors, 8]: the signs to turn.
    """
    table = torch.cat([levels * levels, levels], 1).T.contiguous()
    terms = torch.cat([square, cross], 1)
    entries = entries.clone()
    dim = levels.shape[1]
    count = 8 // dim
    columns = levels.T.contiguous()
    flip = torch.zeros(len(odd), 8, dtype=torch.bool)
    (vectors,) = odd.nonzero(as_tuple=True)
    buffers = torch.empty(2, _AT_ONCE // len(levels), len(levels))
    for some in vectors.split(buffers.shape[1] // count):
        rows = (some[:, None] * count + torch.arange(count)).view(-1)
        term = terms[rows]
        added = term[:, dim:] * -2
        cheapest, other = buffers[:, : len(rows)].unbind(0)
        torch.mul(added[:, :1], columns[0], out=cheapest)
        for i in range(1, dim):
            torch.mul(added[:, i : i + 1], columns[i], out=other)
            torch.minimum(cheapest, other, out=cheapest)
        turned, entry = _least(cheapest.addmm_(term, table))
        best = (turned - value[rows]).view(len(some), -1).argmin(1)
        row = torch.arange(len(some)) * count + best
        entries[rows[row]] = entry[row]
        place = (added[row] * levels[entry[row]]).argmin(1)
        flip[some, best * dim + place] = True
    return entries, flip


def _least(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of each row of [m, G] and where it is; G is a power of two from 256."""
    m, size = cost.shape
    # torch finds minima along a middle dimension of many runs much faster than positions
    parts = cost.view(m, -1, 32 if size <= 512 else 64)
    column = parts.amin(1).argmin(1)
    value, row = parts[torch.arange(m), :, column].min(1)
    return value, row * parts.shape[2] + column
