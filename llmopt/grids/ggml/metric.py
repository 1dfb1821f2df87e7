"""Signs and codebook entries of a vector where errors of neighbours are weighed together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.grids.ggml.codebook import lowest

__all__ = ["SignDescent"]

_ROUNDS = 2


@dataclass(frozen=True)
class SignDescent:
    """Lowers e^T metric e for e = x - scale * sign * level, step by step.

    levels: [G, dim], dim 8 or 4; then two entries make a vector. metric: [8, 8], symmetric,
    positive definite. x: [m, 8]. scale: [m]. even: the minuses of a vector stay even in number.
    """

    levels: Tensor
    metric: Tensor
    x: Tensor
    scale: Tensor
    even: bool

    def run(self, minus: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Better signs bool [m, 8] and entries int64 [m, 8 / dim] than these."""
        for _ in range(_ROUNDS):
            entries = self._entries(minus, entries)
            minus = self._turned(minus, entries)
        return minus, self._entries(minus, entries)

    def _values(self, minus: Tensor, entries: Tensor) -> Tensor:
        return self._signed(minus) * self.levels[entries].flatten(1)

    def _signed(self, minus: Tensor) -> Tensor:
        return self.scale[:, None] * (1 - 2 * minus.float())

    def _entries(self, minus: Tensor, entries: Tensor) -> Tensor:
        """The best entry of each part, given the signs and the other part."""
        dim = self.levels.shape[1]
        first, second = torch.triu_indices(dim, dim).unbind(0)
        table = torch.cat([self.levels[:, first] * self.levels[:, second], self.levels], 1)
        twice = torch.where(first == second, 1.0, 2.0)
        signed, chosen = self._signed(minus), entries.clone()
        for number in range(8 // dim):
            part = slice(dim * number, dim * number + dim)
            rest = self.x - self._values(minus, chosen)
            rest[:, part] = self.x[:, part]
            own, factor = self.metric[part, part], signed[:, part]
            quadratic = own[first, second] * twice * factor[:, first] * factor[:, second]
            linear = -2 * factor * (rest @ self.metric[:, part])
            chosen[:, number], _ = lowest(torch.cat([quadratic, linear], 1), table)
        return chosen

    def _turned(self, minus: Tensor, entries: Tensor) -> Tensor:
        """With the one sign turned, or the pair of them, that lowers the cost most, if any does."""
        values = self._values(minus, entries)
        moved = -2 * values
        change = moved * (moved * self.metric.diagonal() - 2 * ((self.x - values) @ self.metric))
        first = second = torch.arange(8)
        if self.even:
            first, second = torch.triu_indices(8, 8, 1).unbind(0)
            shared = 2 * self.metric[first, second] * moved[:, first] * moved[:, second]
            change = change[:, first] + change[:, second] + shared
        gain, best = change.min(1)
        places = torch.arange(8)
        turn = (places == first[best, None]) | (places == second[best, None])
        return minus ^ (turn & (gain < 0)[:, None])
