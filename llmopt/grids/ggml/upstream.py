"""The scale searches of ggml's own encoders, number for number.

Every sum runs in the order of the index and every operation rounds to float32, as in ggml's
compiled scalar code (no fused multiply-add). Tensors are element-first: [width, ...], where the
elements beside `width` are independent blocks, a multiple of LANES of them, contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import threshold

#: torch sums fewer columns than a few vectors in another order
LANES = 64

#: below this a block counts as all zero.
NOTHING = 1e-15
# Elements that a search works on at once.
_PIECE = 1 << 16
# torch adds up to so many rows one after another, and more in a cascade.
_RUN = 16


def _pieces(x: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """x and weights in parts of the last dimension whose buffers stay in the cache."""
    lanes = max(LANES, _PIECE * x.shape[-1] // x.numel() // LANES * LANES)
    for part, weight in zip(
        torch.split(x, lanes, -1), torch.split(weights, lanes, -1), strict=True
    ):
        yield part.contiguous(), weight.contiguous()


class OrderedSum:
    """Sums of a buffer [k, width, ...] along its second dimension, one term after another.

    A call writes them to `total` [k, ...] and overwrites the buffer.
    """

    def __init__(self, terms: Tensor, total: Tensor) -> None:
        starts = range(0, terms.shape[1], _RUN)
        self._spans = [(terms[:, at : at + _RUN], terms[:, at]) for at in starts]
        self.total = total

    def __call__(self) -> Tensor:
        for index, (span, first) in enumerate(self._spans):
            if index:
                first.add_(self.total)
            torch.sum(span, 1, out=self.total)
        return self.total


def ordered_sum(terms: Tensor) -> Tensor:
    """The sum along the first dimension, one term after another. Overwrites terms."""
    terms = terms.unsqueeze(0)
    return OrderedSum(terms, torch.empty_like(terms[:, 0]))()[0]


def signed_extreme(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first element of largest magnitude, and that magnitude."""
    magnitudes = x.abs()
    largest = magnitudes.amax(0)
    extreme = torch.zeros_like(largest)
    for element, magnitude in zip(x.flip(0), magnitudes.flip(0), strict=True):
        extreme = torch.where(magnitude == largest, element, extreme)
    return extreme, largest


def symmetric(x: Tensor, weights: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scale and levels in [-half, half - 1]: the best of 19 scales by (sum w x l)^2 / sum w l^2.

    Levels are -half throughout where x is nothing but zeros: code 0.
    """
    extreme, largest = signed_extreme(x)
    weighted, levels, terms = weights * x, torch.empty_like(x), torch.empty_like(x)
    best = chosen = scale = torch.zeros_like(extreme)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = torch.div(_float32(half, 0.1, step).neg_(), extreme)
        torch.mul(x, inverse, out=levels).round_().clamp_(-half, half - 1)
        dot = ordered_sum(torch.mul(weighted, levels, out=terms))
        norm = ordered_sum(torch.mul(weights, levels, out=terms).mul_(levels))
        fitted = torch.where(norm == 0, 0.0, dot / norm)
        better = (norm > 0) & (dot * dot > best * norm) if step else torch.ones_like(norm) > 0
        best = torch.where(better, fitted * dot, best)
        scale = torch.where(better, fitted, scale)
        chosen = torch.where(better, inverse, chosen)
    nothing = largest < NOTHING
    torch.mul(x, chosen, out=levels).round_().clamp_(-half, half - 1)
    return scale.masked_fill(nothing, 0.0), levels.masked_fill_(nothing, -half)


def _float32(start: float, step: float, count: int) -> Tensor:
    """start + step * count, every operation in float32."""
    return torch.tensor(step).mul_(count).add_(start)


def stepwise(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scale and levels in [-half, half - 1] with weights x^2: codes changed one by one while
    (sum w x l)^2 / sum w l^2 rises, in up to five sweeps. Levels as in `symmetric`.
    """
    extreme, largest = signed_extreme(x)
    levels = torch.div(torch.tensor(-float(half)), extreme)
    levels = (x * levels).round_().clamp_(-half, half - 1)
    dot, norm = _climb(x, x * x, levels, -half, half - 1)
    nothing = largest < NOTHING
    scale = torch.where((norm > 0) & ~nothing, dot / norm, 0.0)
    return scale, levels.masked_fill_(nothing, -half)


def affine(
    x: Tensor, weights: Tensor, top: int, ranges: Tensor, *, absolute: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, minimum >= 0 and codes in [0, top] of x = scale * code - minimum.

    ranges: what (highest + minimum) is divided into, one after another; each gives codes, to which
    scale and minimum are fitted by least squares. Where that lowers the error they are taken, and
    the next range starts from the new minimum. `absolute` counts the magnitude of errors, not the
    square.
    """
    found = []
    for part, weight in _pieces(x, weights):
        search = _AffineSearch(part, weight, top, absolute=absolute)
        for divisor in ranges:
            search.consider(divisor)
        found.append(search.result())
    scale, minimum, codes = zip(*found, strict=True)
    return torch.cat(scale, -1), torch.cat(minimum, -1), torch.cat(codes, -1)


class _AffineSearch:
    """The best so far of `affine`, in buffers that are used again and again."""

    def __init__(self, x: Tensor, weights: Tensor, top: int, *, absolute: bool) -> None:
        self._x, self._weights, self._top, self._absolute = x, weights, top, absolute
        self._low, self._high = x.amin(0).clamp_(max=0.0), x.amax(0)
        self._codes, terms = torch.empty_like(x), x.new_empty(3, *x.shape)
        # sums of w l^2, w x l and w l, of which the terms are summed, and of w x
        sums = x.new_empty(4, *x.shape[1:])
        sums[3] = ordered_sum(weights * x)
        self._sum_w = ordered_sum(weights.clone())
        # error, inverse scale and lowest value that gave the codes, scale, offset: best and tried
        self._best, self._tried = (x.new_empty(5, *x.shape[1:]) for _ in range(2))
        self._sum, self._sum_error = (
            OrderedSum(terms, sums[:3]),
            OrderedSum(terms[:1], self._tried[:1]),
        )
        solved = x.new_empty(2, *x.shape[1:])
        # views of the buffers: indexing costs as much as arithmetic on a few thousand numbers
        self._terms, self._rows, self._solved = terms.unbind(), sums.unbind(), solved.unbind()
        self._halves, self._both = (sums[:2], sums[2:]), solved
        self._now, self._before = self._tried.unbind(), self._best.unbind()
        self._zero, self._flags = torch.zeros_like(self._low), self._low > 0
        self._start()

    def _start(self) -> None:
        """The whole range, its scale not fitted."""
        _, inverse, start, scale, offset = self._now
        torch.div(torch.tensor(float(self._top)), self._high - self._low, out=inverse)
        start.copy_(self._low)
        offset.copy_(self._low)
        torch.reciprocal(inverse, out=scale)
        self._round(start, inverse)
        self._measure(scale, offset)
        self._best.copy_(self._tried)

    def _round(self, start: Tensor, inverse: Tensor) -> None:
        torch.sub(self._x, start, out=self._codes).mul_(inverse).round_().clamp_(0, self._top)

    def _measure(self, scale: Tensor, offset: Tensor) -> None:
        """The error of the codes."""
        off = torch.mul(self._codes, scale, out=self._terms[0]).add_(offset).sub_(self._x)
        (off.abs_() if self._absolute else off.mul_(off)).mul_(self._weights)
        self._sum_error()

    def consider(self, divisor: Tensor) -> None:
        """One more range."""
        error, inverse, start, scale, offset = self._now
        start.copy_(self._before[4])
        torch.div(divisor, torch.sub(self._high, start, out=inverse), out=inverse)
        self._round(start, inverse)
        squares, products, levels = self._terms
        torch.mul(self._weights, self._codes, out=levels)
        torch.mul(levels, self._codes, out=squares)
        torch.mul(levels, self._x, out=products)
        self._sum()
        sum_ll, sum_xl, sum_l, sum_x = self._rows
        torch.mul(self._halves[0], self._sum_w, out=self._both).sub_(self._halves[1] * sum_l)
        determinant, numerator = self._solved
        threshold(determinant, 0.0, torch.nan, inplace=True)  # which is no candidate
        torch.div(numerator, determinant, out=scale)
        torch.mul(sum_ll, sum_x, out=offset).sub_(sum_l * sum_xl).div_(determinant)
        positive = torch.gt(offset, self._zero, out=self._flags)
        if bool(positive.any()):
            torch.where(positive, sum_xl / sum_ll, scale, out=scale)
            offset.clamp_(max=0.0)
        self._measure(scale, offset)
        better = torch.lt(error, self._before[0], out=self._flags)
        torch.where(better, self._tried, self._best, out=self._best)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        _, inverse, start, scale, offset = self._before
        self._round(start, inverse)
        empty = self._high <= self._low
        minimum = torch.where(empty, self._low, offset).neg_()
        return scale.masked_fill(empty, 0.0), minimum, self._codes.masked_fill_(empty, 0.0)


def affine_ranges(top: int, start: float, step: float, steps: int) -> Tensor:
    """start + step * k + top for k = 0 ... steps, every operation in float32."""
    return torch.arange(steps + 1, dtype=torch.float32).mul_(step).add_(start).add_(top)


def positive(x: Tensor, weights: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and levels in [0, top] for x >= 0 [count, ...]: the best of nine scales, then up to
    five sweeps in which single levels move while (sum w x l)^2 / sum w l^2 rises.

    Where x is below zero after all, levels wrap around as ggml's bytes do.
    """
    largest = x.amax(0).clamp_(min=0.0)
    chosen = torch.div(torch.tensor(float(top)), largest)
    best = _distance(x, weights, chosen, (x * chosen).round_().remainder_(256))
    for step in (*range(-4, 0), *range(1, 5)):
        inverse = torch.div(_float32(top, 0.1, step), largest)
        found = _distance(x, weights, inverse, (x * inverse).round_().clamp_(max=top))
        chosen = torch.where(found < best, inverse, chosen)
        best = torch.where(found < best, found, best)
    levels = (x * chosen).round_().clamp_(max=top)
    dot, norm = _climb(x, weights, levels, 0, top)
    nothing = largest < NOTHING
    scale = torch.where((norm > 0) & ~nothing, dot / norm, 0.0)
    return scale, levels.masked_fill_(nothing, 0.0)


def _distance(x: Tensor, weights: Tensor, inverse: Tensor, levels: Tensor) -> Tensor:
    difference = x - levels.mul_(inverse.reciprocal())
    return ordered_sum((weights * difference).mul_(difference))


def _climb(x: Tensor, weights: Tensor, levels: Tensor, low: int, top: int) -> tuple[Tensor, Tensor]:
    """Change single levels in place while that pays; sum w x l and sum w l^2."""
    weighted = weights * x
    dot, norm = ordered_sum(weighted * levels), ordered_sum(weights * levels * levels)
    if not low:
        levels.remainder_(256)
    for _ in range(5):
        before = levels.clone()
        for value, weight, product, level in zip(x, weights, weighted, levels, strict=True):
            rest = dot - product * level
            square = norm - weight * level * level
            tried = (value * square / rest).round_()
            tried = tried.clamp_(low, top) if low else tried.clamp_(max=top)
            moved_dot = rest + product * tried
            moved_norm = square + weight * tried * tried
            better = (rest > 0) & (tried != level) & ((moved_norm if low else square) > 0)
            better &= moved_dot * moved_dot * norm > dot * dot * moved_norm
            level.copy_(torch.where(better, tried if low else tried.remainder(256), level))
            dot = torch.where(better, moved_dot, dot)
            norm = torch.where(better, moved_norm, norm)
        if torch.equal(before, levels):
            break
    return dot, norm


def round_away(x: Tensor) -> Tensor:
    """C's roundf: to the nearest whole number, halves away from zero."""
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)


def root(x: Tensor) -> Tensor:
    """The square root, correctly rounded: torch's own may be the neighbour."""
    return x.double().sqrt_().float()
