"""The search of ggml's own encoders in the codebooks of the IQ types.

ggml rounds to the lattice of all levels: where the codebook has that point it is taken, else the
best of the entries that lie in the one to three nearest shells around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding

from llmopt.grids.ggml.codebook import Codebook, codebook

__all__ = ["Neighbours", "neighbours", "running_sum"]

#: elements of one step: what fits a core's cache
_AT_ONCE = 1 << 16
#: lists of neighbours are searched together with lists of about their length
_WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)


def running_sum(terms: Tensor) -> Tensor:
    """The sum over the last dimension, added one after another in float32 as C does."""
    first, *rest = terms.unbind(-1)
    for term in rest:
        first = first + term
    return first


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """ggml's search.

    entry: int64 [points], the codebook's entry at a point of the lattice, -1 where there is none.
    count: int64 [points]. table: int64 [points, longest], entries around a point by distance, then
    number; a shorter row repeats its first. levels: float32 [G, dim], the entries in this search.
    """

    book: Codebook
    entry: Tensor
    count: Tensor
    table: Tensor
    levels: Tensor

    def entries(
        self, places: Tensor, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Entries int64 [m] for places int64 [m, dim], and whether the codebook has the places.

        What it has not is met by the neighbour of least sum of weight * (scale * (level + shift)
        - x)^2, the first of equals. x, weight: [m, dim]; scale, shift: [m].
        """
        point = self.book.point(places)
        entry = self.entry[point]
        found = entry >= 0
        (missing,) = torch.nonzero(~found, as_tuple=True)
        count = self.count[point[missing]]
        for rows, width in _classes(missing, count):
            ids = self.table[point[rows], :width]
            levels = embedding(ids, self.levels)
            if shift is not None:
                levels = levels + shift[rows, None, None]
            gap = scale[rows, None, None] * levels - x[rows, None, :]
            cost = running_sum(weight[rows, None, :] * gap * gap)
            entry[rows] = ids.gather(1, cost.argmin(1, keepdim=True)).squeeze(1)
        return entry, found


def _classes(rows: Tensor, count: Tensor) -> Iterator[tuple[Tensor, int]]:
    """rows in parts of similar count, each with a width that holds its counts."""
    lowest = 0
    for width in _WIDTHS:
        part = rows[(count > lowest) & (count <= width)]
        lowest = width
        yield from ((some, width) for some in torch.split(part, max(1, _AT_ONCE // (8 * width))))


@lru_cache
def neighbours(type_id: str, shells: int, *, odd: bool) -> Neighbours:
    """The neighbours of a type in the `shells` nearest shells; odd: levels are 1, 3, 5, ... ."""
    book = codebook(type_id)
    dim = book.places.shape[1]
    powers = book.base ** torch.arange(dim)
    lattice = (torch.arange(book.base**dim)[:, None] // powers % book.base).float()
    places = book.places.float()
    distance = (lattice**2).sum(1)[:, None] + (places**2).sum(1) - 2 * lattice @ places.T
    reach = torch.full((len(lattice), 1), -1.0)
    for _ in range(shells):
        further = torch.where(distance > reach, distance, torch.inf)
        reach = further.amin(1, keepdim=True)
    near = distance <= reach
    count = near.sum(1)
    # distances are whole numbers below 2^9: one key sorts by point, distance and number
    point, entry = near.nonzero(as_tuple=True)
    order = ((point << 20) + (distance[point, entry].long() << 11) + entry).argsort()
    start = count.cumsum(0) - count
    slot = torch.arange(len(point)) - start[point]
    sorted_entry = entry[order]
    table = sorted_entry[start][:, None].repeat(1, int(count.max()))
    table[point, slot] = sorted_entry
    own = torch.full((len(lattice),), -1)
    own[book.point(book.places)] = torch.arange(len(places))
    levels = 2 * places + 1 if odd else book.levels
    return Neighbours(book=book, entry=own, count=count, table=table, levels=levels)
