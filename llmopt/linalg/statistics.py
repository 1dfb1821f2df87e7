"""What is known of the inputs of linears: as much of it as is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.linalg import factor as factors
from llmopt.linalg import hessian as hessians
from llmopt.linalg.factor import Factor

# Columns that a loss takes at once: half of what is computed of as many at the diagonal is twice.
_STRIP = 512


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """What of an input is to be known beside E[x^2], which costs next to nothing.

    hessian: E[x x^T], half the work of a linear of as many outputs as inputs, and 4 bytes for each
    pair of inputs. mean_abs: E|x|.
    """

    hessian: bool = False
    mean_abs: bool = False

    def nbytes(self, cols: int) -> int:
        """What statistics of an input of so many channels take."""
        return 4 * cols * ((cols if self.hessian else 1) + self.mean_abs)


@dataclass(frozen=True, kw_only=True)
class MeanSquares:
    """mean: float32 [cols], E[x^2] of the tokens that reached an input. tokens: how many."""

    mean: Tensor
    tokens: int


@dataclass(frozen=True)
class _Loan:
    """What puts a Hessian back that stands below a factor, whose memory it was.

    diagonal: [cols], the Hessian's, as it is stored. order: [cols] int64, that of the factor.
    """

    diagonal: Tensor
    order: Tensor | None


@dataclass(frozen=True)
class _Made:
    """A factor, and what it was asked for with."""

    factor: Factor
    damping: float
    order: Tensor | None

    def answers(self, damping: float, order: Tensor | None) -> bool:
        if damping != self.damping or order is None or self.order is None:
            return damping == self.damping and order is self.order
        return torch.equal(order, self.order)


class InputStatistics:
    """What calibration saw at one input shared by one or more linears.

    tokens: how many. E[x^2] is always known; LlmoptError for the rest where it was not wanted.
    """

    def __init__(
        self,
        *,
        hessian: Tensor | None = None,
        squares: Tensor | None = None,
        mean_abs: Tensor | None = None,
        tokens: int = 0,
    ) -> None:
        """hessian: [cols, cols] float32, symmetric; or squares: [cols] float32, E[x^2]."""
        assert (hessian is None) != (squares is None)
        self.tokens = tokens
        self._hessian, self._squares, self._mean_abs = hessian, squares, mean_abs
        self._symmetric = True
        self._loan: _Loan | None = None
        self._made: _Made | None = None

    @classmethod
    def empty(
        cls, cols: int, wanted: InputMoments, device: torch.device | str = "cpu"
    ) -> InputStatistics:
        """Statistics of no tokens yet."""
        return cls(
            hessian=torch.zeros(cols, cols, device=device) if wanted.hessian else None,
            squares=None if wanted.hessian else torch.zeros(cols, device=device),
            mean_abs=torch.zeros(cols, device=device) if wanted.mean_abs else None,
        )

    @property
    def wanted(self) -> InputMoments:
        """What is known beside E[x^2]."""
        return InputMoments(hessian=self._hessian is not None, mean_abs=self._mean_abs is not None)

    @property
    def hessian(self) -> Tensor:
        """[cols, cols] float32, E[x x^T], symmetric to the bit on every CPU.

        Made symmetric when it is first read after tokens were added.
        """
        square = self._half()
        if not self._symmetric:
            hessians.mirror_upper(square)
            self._symmetric = True
        return square

    @property
    def mean_abs(self) -> Tensor:
        """[cols] float32, E|x|."""
        if self._mean_abs is None:
            raise LlmoptError("E|x| of this input was not collected")
        return self._mean_abs

    @property
    def diagonal(self) -> Tensor:
        """[cols] float32, E[x^2]: the importance of each input channel."""
        if self._squares is not None:
            return self._squares
        assert self._hessian is not None
        return self._loan.diagonal if self._loan else self._hessian.diagonal()

    @property
    def squares(self) -> MeanSquares:
        """The diagonal in memory of its own, and the tokens."""
        return MeanSquares(mean=self.diagonal.clone(), tokens=self.tokens)

    def add(self, x: Tensor) -> None:
        """Fold in activations x [..., cols]."""
        x = x.reshape(-1, x.shape[-1])
        total = self.tokens + x.shape[0]
        if total == self.tokens:
            return
        keep, gain = self.tokens / total, 1 / total
        if self._mean_abs is not None:
            sums = x.abs().sum(dim=0, dtype=torch.float32)
            self._mean_abs.mul_(keep).add_(sums, alpha=gain)
        if self._squares is not None:
            squared = x.to(torch.float32).square()
            self._squares.mul_(keep).add_(squared.sum(dim=0), alpha=gain)
        else:
            hessians.accumulate_hessian(self._half(), x, self.tokens)
            self._symmetric, self._made = False, None
        self.tokens = total

    def absorb(self, other: InputStatistics) -> None:
        """Fold in what was seen at another input, of which no less is known."""
        self.tokens += other.tokens
        share = other.tokens / self.tokens
        if self._mean_abs is not None:
            self._mean_abs.lerp_(other.mean_abs, share)
        if self._squares is not None:
            self._squares.lerp_(other.diagonal, share)
        else:
            self._half().lerp_(other._half(), share)
            self._symmetric, self._made = False, None

    def factor(self, damping: float, *, order: Tensor | None = None) -> Factor:
        """The damped Hessian and its factor, as `damped_factor` says; kept for the next who asks.

        Those of an input of more than `factor.BLOCK` channels lie in the Hessian's own memory,
        which is why the whole takes one square and not four. They are good until the Hessian is
        asked for, or a block of it, or another factor: it is then put back, to the bit.
        """
        if self._made is None or not self._made.answers(damping, order):
            self._made = None
            self._made = _Made(self._factored(damping, order), damping, order)
        return self._made.factor

    def to(self, device: torch.device) -> InputStatistics:
        """The same in another place; themselves where they are there."""
        if self.diagonal.device == device:
            return self
        return InputStatistics(
            hessian=self.hessian.to(device) if self._hessian is not None else None,
            squares=None if self._squares is None else self._squares.to(device),
            mean_abs=None if self._mean_abs is None else self._mean_abs.to(device),
            tokens=self.tokens,
        )

    def within(self, block: slice[int, int, None]) -> Tensor:
        """E[x x^T] of these inputs alone."""
        own = self._half()[block, block]
        return own.triu() + own.triu(1).T

    def losses(self, change: Tensor) -> Tensor:
        """d E[x x^T] d^T of each row d of a change [rows, cols]: float64 [rows].

        What that change of a weight costs in its outputs. Of a wide input half the products are
        spared, what they take is a block's, and a factor stays good.
        """
        if self._hessian is not None and len(self._hessian) > factors.BLOCK:
            return self._losses_by_blocks(self._hessian, change)
        return ((change @ self.hessian) * change).sum(1, dtype=torch.float64)

    def _losses_by_blocks(self, half: Tensor, change: Tensor) -> Tensor:
        diagonal, order = self.diagonal, None
        if self._loan is not None:  # the Hessian stands on the other side, and maybe in its order
            half, order = half.T, self._loan.order
        if order is not None:
            diagonal, change = diagonal[order], change.index_select(1, order)
        lost = change.new_zeros(len(change), dtype=torch.float64)
        for start in range(0, len(half), _STRIP):
            own = slice(start, min(start + _STRIP, len(half)))
            corner, mine = half[own, own].triu(1), change[:, own]
            costly = mine @ (corner + corner.T).diagonal_scatter(diagonal[own])
            costly.addmm_(change[:, :start], half[:start, own], alpha=2)
            lost += costly.mul_(mine).sum(1, dtype=torch.float64)
        return lost

    def _factored(self, damping: float, order: Tensor | None) -> Factor:
        square = self._half()
        if len(square) <= factors.BLOCK:
            return factors.damped_factor(self.hessian, damping, order=order)
        factors.check_finite(square)
        diagonal = square.diagonal().clone()
        if order is not None:
            hessians.permute_below(square, order)
        elif not self._symmetric:
            hessians.mirror_upper(square)
        self._loan, self._symmetric = _Loan(diagonal, order), False
        ordered = diagonal if order is None else diagonal[order]
        return factors.factor_in_place(square, ordered, damping)

    def _half(self) -> Tensor:
        """A square on and above whose diagonal the Hessian stands."""
        if self._hessian is None:
            raise LlmoptError("E[x x^T] of this input was not collected")
        if self._loan is not None:
            self._take_back(self._hessian, self._loan)
            self._loan = self._made = None
        return self._hessian

    def _take_back(self, square: Tensor, loan: _Loan) -> None:
        if loan.order is None:
            hessians.mirror_upper(square.T)
        else:
            square.diagonal().copy_(loan.diagonal[loan.order])
            hessians.permute_above(square, torch.argsort(loan.order))
        square.diagonal().copy_(loan.diagonal)
        self._symmetric = loan.order is None


def accumulated(
    statistics: InputStatistics | None, x: Tensor, wanted: InputMoments
) -> InputStatistics:
    """Statistics with x [..., cols] folded in; None stands for those of nothing yet."""
    if statistics is None:
        statistics = InputStatistics.empty(x.shape[-1], wanted, x.device)
    statistics.add(x)
    return statistics
