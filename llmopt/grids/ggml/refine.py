"""A better fit of what a block stores, by the weighted squared error of its nearest codes.

A value is scale * level + offset, with a scale and an offset for each sub-block. From a start,
rounds alternate between two steps, each kept where it lowers the error: single sub-blocks move to
neighbouring scales and offsets (their codes rounded anew), and the block's fields are fitted to the
codes by least squares. Tensors are element-first: elements [sub, s, n], sub-blocks [s, n], blocks
[n].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

#: what blocks store, by name: float32, [s, n] for each sub-block or [n] for each block
State = dict[str, Tensor]
#: writes the levels nearest to scaled values into the second tensor
Rounder = Callable[[Tensor, Tensor], None]

# Reciprocals of the smallest scales would be infinite, and times 0 not a number.
_LARGEST = 3e38


class Moments(NamedTuple):
    """Weighted sums over the elements of each sub-block, [s, n]; q is the level."""

    w: Tensor
    x: Tensor
    q: Tensor
    qq: Tensor
    xq: Tensor


class FieldLayout(Protocol):
    """What a type stores, as far as a search must know.

    distinct: how many turns differ in what `moves` tries; further ones are like the last of them.
    """

    distinct: int

    def spread(self, state: State) -> tuple[Tensor, Tensor | None]:
        """Scale and offset [s, n]; None for no offset."""

    def moves(self, state: State, turn: int) -> Iterator[Callable[[State], State]]:
        """Changes of sub-block fields to try one after another, in this turn: other fields are
        handed on as they are.
        """

    def settle(self, moments: Moments, state: State | None) -> State:
        """Fields of small error for given codes; a state to start from, if there is one."""


class Problem:
    """Elements x [sub, s, n] to be met with weights of the same shape."""

    def __init__(self, x: Tensor, weights: Tensor, rounder: Rounder) -> None:
        self.x, self.weights, self._round = x, weights, rounder
        weighted = weights * x
        self.sum_w, self.sum_x = weights.sum(0), weighted.sum(0)
        self._sum_xx = (weighted * x).sum(0)
        self._scaled, self._levels = torch.empty_like(x), weighted

    def levels(self, scale: Tensor, offset: Tensor | None) -> Tensor:
        """The nearest levels, in a buffer that the next call overwrites."""
        inverse = scale.reciprocal().clamp_(-_LARGEST, _LARGEST)
        if offset is None:
            torch.mul(self.x, inverse, out=self._scaled)
        else:
            torch.addcmul(-offset * inverse, self.x, inverse, out=self._scaled)
        self._round(self._scaled, self._levels)
        return self._levels

    def error(self, scale: Tensor, offset: Tensor | None) -> Tensor:
        """[s, n]: the weighted squared error of the nearest levels."""
        off = self.levels(scale, offset).sub_(self._scaled)
        found = off.square_().mul_(self.weights).sum(0).mul_(scale).mul_(scale)
        if bool(scale.all()):
            return found
        flat = self._sum_xx
        if offset is not None:
            flat = flat - offset * (2 * self.sum_x - offset * self.sum_w)
        return torch.where(scale == 0, flat, found)

    def moments(self, levels: Tensor) -> Moments:
        """Sums for given levels."""
        product = self.weights * levels
        sum_q = product.sum(0)
        sum_xq = (product * self.x).sum(0)
        return Moments(self.sum_w, self.sum_x, sum_q, product.mul_(levels).sum(0), sum_xq)


def refine(problem: Problem, layout: FieldLayout, state: State, rounds: int) -> State:
    """A state whose error is nowhere above that of the given one.

    Blocks do not depend on each other: rounds end early only once none can change any more.
    """
    error = problem.error(*layout.spread(state))
    for turn in range(rounds):
        before = error
        for move in layout.moves(state, turn):
            proposal = move(state)
            found = problem.error(*layout.spread(proposal))
            better = found < error
            state = {
                name: value
                if proposal[name] is value
                else torch.where(better, proposal[name], value)
                for name, value in state.items()
            }
            error = torch.where(better, found, error)
        levels = problem.levels(*layout.spread(state))
        proposal = layout.settle(problem.moments(levels), state)
        found = problem.error(*layout.spread(proposal))
        better = found.sum(0) < error.sum(0)
        state = {name: torch.where(better, proposal[name], state[name]) for name in state}
        error = torch.where(better, found, error)
        # in another turn of the same moves, what did not change would not change
        if turn >= layout.distinct - 1 and torch.equal(error, before):
            break
    return state
