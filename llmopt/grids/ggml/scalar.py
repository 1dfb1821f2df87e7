"""What the types with a code for every weight have in common: llmopt.grids.ggml.base.ScalarGrid.

A type says how its fields and codes lie in bytes, what ggml's own encoder writes, and what a search
may change; chunks, layouts and the pieces for feedback are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmopt.grids.ggml.base import LARGEST, BlockLattice, Fields, Search
from llmopt.grids.ggml.refine import Moments, Problem, State, refine
from llmopt.grids.ggml.upstream import LANES
from llmopt.grids.ggml.weighing import natural
from llmopt.specs.ggml import GGML_TYPES

# Weights that are worked on at once, and of these by a search, whose buffers stay in the cache.
_CHUNK = 1 << 18
_PIECE = 1 << 16


class Batch(NamedTuple):
    """Blocks to encode, element-first: x [sub, s, n], importance of the same shape if there is any.

    energy: [n] mean square of the row that a block lies in, where there is importance.
    """

    x: Tensor
    importance: Tensor | None
    energy: Tensor


class ScalarBlocks(ABC):
    """A type in which value = scale * level + offset, level = low + code."""

    on_cpu, largest = False, LARGEST
    #: weights that share a scale
    sub: int
    #: the lowest and highest level; levels are whole numbers unless `table` says otherwise
    low: int
    high: int
    #: ascending levels, indexed by code, where they are not whole numbers
    table: Tensor | None = None
    #: as refine.FieldLayout
    distinct: int
    rounds = 6

    def __init__(self, type_id: str) -> None:
        self.spec = GGML_TYPES[type_id]
        self.width = self.spec.block

    # what a type provides

    @abstractmethod
    def upstream(self, part: Batch) -> tuple[State, Tensor]:
        """What ggml's encoder makes of part.x: fields, and levels like x."""

    @abstractmethod
    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        """As refine.FieldLayout."""

    @abstractmethod
    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        """As refine.FieldLayout."""

    @abstractmethod
    def settle(self, moments: Moments, state: State | None) -> State:
        """As refine.FieldLayout."""

    @abstractmethod
    def pack(self, fields: Fields, codes: Tensor) -> Tensor:
        """As base.ScalarGrid."""

    @abstractmethod
    def unpack(self, data: Tensor) -> tuple[Fields, Tensor]:
        """Fields and levels (float32 [n, width]) of blocks uint8 [n, nbytes]."""

    def energy(self, w: Tensor) -> Tensor:
        """[blocks]: as in Batch. Zeros where a type does not ask for it."""
        return w.new_zeros(w.numel() // self.width)

    # base.ScalarGrid

    def encode(self, w: Tensor, importance: Tensor | None, search: Search) -> Tensor:
        blocks = w.reshape(-1, self.width)
        energy = w.new_zeros(len(blocks)) if importance is None else self.energy(w)
        per_row = w.shape[1] // self.width
        weights = None if importance is None else importance.view(per_row, self.width)
        out = torch.empty(len(blocks), self.spec.nbytes, dtype=torch.uint8, device=w.device)
        for part in self._chunks(len(blocks)):
            with torch.inference_mode():  # calls cost less, and there are thousands
                x, weight = self._elements(blocks[part]), None
                if weights is not None:
                    order = torch.arange(part.start, part.stop, device=w.device) % per_row
                    weight = self._elements(weights[order])
                state, levels = self.upstream(Batch(x, weight, _padded(energy[part])))
                if search == "best":
                    state, levels = self._search(x, weight, state)
                count = part.stop - part.start
                out[part] = self.pack(_fields(state, count), self._codes(levels, count))
        return out.view(w.shape[0], -1)

    def decode(self, data: Tensor) -> Tensor:
        blocks = data.reshape(-1, self.spec.nbytes)
        fields, levels = self.unpack(blocks)
        scale, offset = self._spread_fields(fields)
        values = levels.view(len(blocks), -1, self.sub) * scale
        if offset is not None:
            values += offset
        return values.view(data.shape[0], -1)

    def fit(self, blocks: Tensor, importance: Tensor) -> Fields:
        energy = blocks.square().mean(1)

        def found(x: Tensor, weight: Tensor, part: slice) -> State:
            start, _ = self.upstream(Batch(x, weight, _padded(energy[part])))
            return self._search(x, weight, start)[0]

        return self._by_chunks(found, blocks, importance)

    def refit(self, blocks: Tensor, codes: Tensor, importance: Tensor) -> Fields:
        levels = self._levels(codes)

        def found(x: Tensor, weight: Tensor, part: slice) -> State:
            moments = Problem(x, weight, self._round).moments(self._elements(levels[part]))
            return self.settle(moments, None)

        return self._by_chunks(found, blocks, importance)

    def _by_chunks(
        self, work: Callable[[Tensor, Tensor, slice], State], blocks: Tensor, importance: Tensor
    ) -> Fields:
        weights, found = importance.expand_as(blocks), []
        for part in self._chunks(len(blocks)):
            with torch.inference_mode():
                x, weight = self._elements(blocks[part]), self._elements(weights[part])
                found.append(_fields(work(x, weight, part), part.stop - part.start))
        return {name: torch.cat([fields[name] for fields in found]) for name in found[0]}

    def lattice(self, fields: Fields) -> BlockLattice:
        scale, offset = self._spread_fields(fields)
        if offset is None:
            offset = torch.zeros_like(scale)
        if self.table is None and self.low:
            offset = offset + scale * self.low
        shape = (scale.shape[0], self.width)
        return BlockLattice(
            scale=scale.expand(-1, -1, self.sub).reshape(shape),
            offset=offset.expand(-1, -1, self.sub).reshape(shape),
            top=self.high - self.low if self.table is None else len(self.table) - 1,
            levels=None if self.table is None else self.table.to(scale.device),
        )

    # between [n, width] and [sub, s, n]

    def _chunks(self, count: int) -> Iterator[slice]:
        step = _CHUNK // self.width
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def _elements(self, blocks: Tensor) -> Tensor:
        """[sub, s, n] of blocks [n, width], n filled up with zeros to a multiple of LANES."""
        parts = blocks.view(len(blocks), -1, self.sub).permute(2, 1, 0)
        return _padded(parts).contiguous()

    def _codes(self, levels: Tensor, count: int) -> Tensor:
        blocks = levels[..., :count].permute(2, 1, 0).reshape(count, self.width)
        if self.table is None:
            return (blocks - self.low).to(torch.uint8)
        return torch.bucketize(blocks.contiguous(), self.table.to(blocks.device)).to(torch.uint8)

    def _levels(self, codes: Tensor) -> Tensor:
        if self.table is None:
            return codes.to(torch.float32) + self.low
        return self.table.to(codes.device)[codes.to(torch.int64)]

    def _spread_fields(self, fields: Fields) -> tuple[Tensor, Tensor | None]:
        """Scale and offset [n, s, 1]."""
        state = {name: value.movedim(0, -1) for name, value in fields.items()}
        scale, offset = self.spread(state)
        return scale.T.unsqueeze(-1), None if offset is None else offset.T.unsqueeze(-1)

    # search

    def _search(self, x: Tensor, weights: Tensor | None, start: State) -> tuple[State, Tensor]:
        """A state at least as good as start, and its levels."""
        if weights is None:
            weights = natural(x, (0, 1))
        states, levels = [], []
        lanes = _PIECE // self.width
        for at in range(0, x.shape[-1], lanes):
            part = slice(at, at + lanes)
            problem = Problem(
                x[..., part].contiguous(), weights[..., part].contiguous(), self._round
            )
            state = {name: value[..., part] for name, value in start.items()}
            state = refine(problem, self, state, self.rounds)
            states.append(state)
            levels.append(problem.levels(*self.spread(state)))
        return {name: torch.cat([s[name] for s in states], -1) for name in start}, torch.cat(
            levels, -1
        )

    def _round(self, scaled: Tensor, out: Tensor) -> None:
        """As refine.Rounder."""
        if self.table is None:
            torch.clamp(scaled, self.low, self.high, out=out).round_()
            return
        table = self.table.to(scaled.device)
        torch.index_select(
            table,
            0,
            torch.bucketize(scaled, (table[1:] + table[:-1]) / 2).view(-1),
            out=out.view(-1),
        )


def _padded(values: Tensor) -> Tensor:
    missing = -values.shape[-1] % LANES
    return torch.nn.functional.pad(values, (0, missing)) if missing else values


def _fields(state: State, count: int) -> Fields:
    """A state as fields: first dimension n, without what was filled up."""
    return {name: value[..., :count].movedim(-1, 0).contiguous() for name, value in state.items()}
