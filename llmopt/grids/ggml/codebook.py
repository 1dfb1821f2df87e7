"""The codebooks of ggml's IQ types, and the search among all of their entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Codebook", "codebook", "lowest", "nearest_entries", "turn_signs"]

#: costs that are looked at together: what fits a core's cache
_AT_ONCE = 1 << 19
#: how many of a vector's signs are tried as the one to turn
_TURNS = 2


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
    return lowest(torch.cat([square, cross], 1), torch.cat([levels * levels, levels], 1))


def lowest(terms: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Where in each row terms [m, t] @ table [G, t].T is lowest, int64 [m], and how low."""
    table = table.T.contiguous()
    value, entries = torch.empty(len(terms)), torch.empty(len(terms), dtype=torch.long)
    step = _AT_ONCE // table.shape[1]
    buffer = torch.empty(min(step, len(terms)), table.shape[1])
    for start in range(0, len(terms), step):
        part = slice(start, start + step)
        cost = torch.mm(terms[part], table, out=buffer[: len(terms) - start])
        value[part], entries[part] = _least(cost)
    return entries, value


def turn_signs(
    levels: Tensor, square: Tensor, cross: Tensor, entries: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """What nearest_entries found, changed so that one sign of 8 is the opposite of its weight's.

    A vector is 8 / dim consecutive rows; cross, which is not positive, changes its sign where a
    weight's is turned. Tried are the weights that weigh least. Entries int64 [m], and int64
    [vectors], which of the 8 to turn.
    """
    dim = levels.shape[1]
    vector = torch.arange(len(cross) * dim // 8)
    best = torch.full((len(vector),), torch.inf)
    turned = torch.zeros_like(vector)
    row, entry = torch.zeros_like(vector), torch.zeros_like(vector)
    for place in cross.view(-1, 8).topk(_TURNS, dim=1).indices.unbind(1):
        at = vector * (8 // dim) + place // dim
        other = cross[at]
        other[vector, place % dim] *= -1
        found, cost = nearest_entries(levels, square[at], other)
        more = cost - value[at]
        better = more < best
        best = torch.where(better, more, best)
        turned = torch.where(better, place, turned)
        row, entry = torch.where(better, at, row), torch.where(better, found, entry)
    return entries.index_put((row,), entry), turned


def _least(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum of each row of [m, G] and where it is; G is a power of two from 256."""
    m, size = cost.shape
    # torch finds minima along a middle dimension of many runs much faster than positions
    parts = cost.view(m, -1, 32 if size <= 512 else 64)
    column = parts.amin(1).argmin(1)
    value, row = parts[torch.arange(m), :, column].min(1)
    return value, row * parts.shape[2] + column
