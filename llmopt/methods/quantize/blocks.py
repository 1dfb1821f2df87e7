"""One block of columns, all others held fixed: which scales and codes lose least.

With E = target - scale * codes, [n, rows] and a column of the weight to each row, every function
here lowers, for each row r of the weight, e^T A e where e = E[:, r] and A = U U^T is the n x n
matrix that says what errors in these columns cost: the block of the Hessian where all other
columns stay as they are, or what is left of it where the columns after it can still make up for
errors. Codes are counted from the zero point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmopt.grids.affine import Columns, round_scale, round_with_feedback
from llmopt.grids.levels import index

# Scales tried around the fitted one. Feedback spreads the targets and then makes up for much of
# what it rounds away, so the best scale is rarely the one that rounding alone would choose.
_TRIALS = (1.0, 0.92, 0.96, 1.04)
# A trial costs a feedback pass over the block alone; in wide blocks that is no longer little.
_WIDEST_TRIAL = 512


@dataclass(frozen=True)
class ColumnLattice:
    """The values that a block's columns may take: scale * c for whole c in [low, high].

    scale, low, high: [n or 1, rows] float32; one row of them where all columns share a group.
    free: whether the scale may change, which takes a single group. signed: whether to below zero.
    levels: ascending values that c may take instead of whole numbers.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    free: bool
    signed: bool
    scale_dtype: str = "float16"
    levels: Tensor | None = None

    def keep(self, codes: Tensor) -> Tensor:
        """Codes as int16: themselves, or the index of their level."""
        return (codes if self.levels is None else index(codes, self.levels)).to(torch.int16)

    def kept(self, codes: Tensor) -> Tensor:
        """What `keep` was given, float32."""
        if self.levels is None:
            return codes.to(torch.float32)
        return self.levels[codes.to(torch.int64)]


def feedback(target: Tensor, upper: Tensor, lattice: ColumnLattice) -> Tensor:
    """Codes by GPTQ's feedback inside the block, U = `upper`; float32 [n, rows]."""
    codes = torch.empty_like(target)
    coupling = upper / upper.diagonal()
    _round(target.clone(), target.clone(), codes, lattice, coupling)
    return codes


def feedback_with_trials(
    target: Tensor, upper: Tensor, lattice: ColumnLattice
) -> tuple[Tensor, ColumnLattice]:
    """Codes as `feedback` gives them, at whichever trial scale loses least, row by row."""
    n, rows = target.shape
    if not lattice.free or n > _WIDEST_TRIAL:
        return feedback(target, upper, lattice), lattice
    k = len(_TRIALS)
    dtype = lattice.scale_dtype
    scales = torch.cat([round_scale(lattice.scale * trial, dtype) for trial in _TRIALS])
    trials = replace(
        lattice,
        scale=scales.view(1, k * rows),
        low=lattice.low.repeat(1, k),
        high=lattice.high.repeat(1, k),
    )
    rounded_from, codes = target.repeat(1, k), torch.empty(n, k * rows, device=target.device)
    diagonal = upper.diagonal()
    _round(rounded_from, rounded_from.clone(), codes, trials, upper / diagonal)
    # e^T A e is the sum over columns of (what it was rounded from - its value)^2 U_kk^2.
    lost = rounded_from.addcmul_(codes, trials.scale, value=-1).square_()
    best = (diagonal.square() @ lost).view(k, rows).argmin(0, keepdim=True)
    chosen = codes.view(n, k, rows).gather(1, best.expand(n, 1, rows)).squeeze(1)
    return chosen, replace(lattice, scale=scales.gather(0, best))


def descend(
    gradient: Tensor, cost: Tensor, codes: Tensor, lattice: ColumnLattice
) -> tuple[Tensor, ColumnLattice]:
    """One round of descent: the scale best for these codes, then each code best for the others.

    gradient: [n, rows], A E, overwritten. cost: A. Never raises e^T A e but for float rounding.
    """
    if lattice.free:
        lattice = _refit(gradient, cost, codes, lattice)
    diagonal = cost.diagonal()
    values = codes * lattice.scale
    target = gradient.div_(diagonal.unsqueeze(1)).add_(values)
    descended = torch.empty_like(codes)
    _round(target, values, descended, lattice, cost / diagonal)
    return descended, lattice


def _round(
    target: Tensor, current: Tensor, codes: Tensor, lattice: ColumnLattice, coupling: Tensor
) -> None:
    """As `round_with_feedback`, to a lattice's values."""
    columns = Columns(target, current, codes, lattice.scale, lattice.low, lattice.high)
    round_with_feedback(columns, coupling, lattice.levels)


def _refit(gradient: Tensor, cost: Tensor, codes: Tensor, lattice: ColumnLattice) -> ColumnLattice:
    """Move each row's scale to the stored value that is best for its codes, and `gradient` along.

    A step t changes e^T A e by -2 t c^T A e + t^2 c^T A c.
    """
    costly = cost @ codes
    slope, curvature = (codes * gradient).sum(0), (codes * costly).sum(0)
    old = lattice.scale[0]
    moved = old + torch.where(curvature > 0, slope / curvature, 0.0)
    new = round_scale(moved, lattice.scale_dtype)
    step = new - old
    worse = step * (step * curvature - 2 * slope) >= 0
    if not lattice.signed:
        worse |= new <= 0
    step = torch.where(worse, 0.0, step)
    gradient.addcmul_(costly, step, value=-1)
    return replace(lattice, scale=torch.where(worse, old, new).unsqueeze(0))
