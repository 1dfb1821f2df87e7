"""The scale searches of ggml's own encoders, number for number.

Every sum runs in the order of the index and every operation rounds to float32, as in ggml's
compiled scalar code (no fused multiply-add). Tensors are element-first: [width, ...], where the
elements beside `width` are independent blocks, a multiple of LANES of them, contiguous.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: torch sums fewer columns than a few vectors in another order
LANES = 64

#: below this a block counts as all zero.
NOTHING = 1e-15
# torch adds up to so many rows one after another, and more in a cascade.
_RUN = 16


def ordered_sum(terms: Tensor) -> Tensor:
    """The sum along the first dimension, one term after another. Overwrites terms."""
    total = terms[:_RUN].sum(0)
    for start in range(_RUN - 1, terms.shape[0] - 1, _RUN - 1):
        terms[start] = total
        total = terms[start : start + _RUN].sum(0)
    return total


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
    weights = x * x
    weighted = weights * x
    dot, norm = ordered_sum(weighted * levels), ordered_sum(weights * levels * levels)
    for _ in range(5):
        before = levels.clone()
        for value, weight, product, level in zip(x, weights, weighted, levels, strict=True):
            rest = dot - product * level
            square = norm - weight * level * level
            tried = (value * square / rest).round_().clamp_(-half, half - 1)
            moved_dot = rest + product * tried
            moved_norm = square + weight * tried * tried
            better = (rest > 0) & (tried != level) & (moved_norm > 0)
            better &= moved_dot * moved_dot * norm > dot * dot * moved_norm
            level.copy_(torch.where(better, tried, level))
            dot = torch.where(better, moved_dot, dot)
            norm = torch.where(better, moved_norm, norm)
        if torch.equal(before, levels):
            break
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
    low, high = x.amin(0).clamp_(max=0.0), x.amax(0)
    terms = torch.empty(x.shape[0], 3, *x.shape[1:], dtype=x.dtype, device=x.device)
    flat, codes = terms[:, 0], torch.empty_like(x)
    sum_w = ordered_sum(weights.clone())
    sum_x = ordered_sum(weights * x)

    def round_above(start: Tensor, inverse: Tensor) -> None:
        torch.sub(x, start, out=codes).mul_(inverse).round_().clamp_(0, top)

    def error(scale: Tensor, minimum: Tensor) -> Tensor:
        torch.mul(codes, scale, out=flat).add_(minimum).sub_(x)
        (flat.abs_() if absolute else flat.square_()).mul_(weights)
        return ordered_sum(flat)

    chosen = torch.div(torch.tensor(float(top)), high - low)
    scale, minimum, start = chosen.reciprocal(), low, low
    round_above(start, chosen)
    best = error(scale, minimum)
    for divisor in ranges:
        inverse = torch.div(divisor, high - minimum)
        round_above(minimum, inverse)
        torch.mul(weights, codes, out=terms[:, 0])
        torch.mul(terms[:, 0], codes, out=terms[:, 1])
        torch.mul(terms[:, 0], x, out=terms[:, 2])
        sum_l, sum_ll, sum_xl = ordered_sum(terms)
        determinant = sum_w * sum_ll - sum_l * sum_l
        fitted = (sum_w * sum_xl - sum_x * sum_l) / determinant
        offset = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        positive = offset > 0
        offset = offset.masked_fill_(positive, 0.0)
        fitted = torch.where(positive, sum_xl / sum_ll, fitted)
        found = error(fitted, offset)
        better = (determinant > 0) & (found < best)
        best = torch.where(better, found, best)
        chosen, start = torch.where(better, inverse, chosen), torch.where(better, minimum, start)
        scale, minimum = torch.where(better, fitted, scale), torch.where(better, offset, minimum)
    round_above(start, chosen)
    empty = high <= low
    minimum = torch.where(empty, low, minimum).neg_()
    return scale.masked_fill(empty, 0.0), minimum, codes.masked_fill_(empty, 0.0)


def affine_ranges(top: int, start: float, step: float, steps: int) -> Tensor:
    """start + step * k + top for k = 0 ... steps, every operation in float32."""
    return torch.arange(steps + 1, dtype=torch.float32).mul_(step).add_(start).add_(top)


def positive(x: Tensor, weights: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and levels in [0, top] for x >= 0 [count, ...]: the best of nine scales, then up to
    five sweeps in which single levels move while (sum w x l)^2 / sum w l^2 rises.
    """
    largest = x.amax(0).clamp_(min=0.0)
    chosen = torch.div(torch.tensor(float(top)), largest)
    best = _distance(x, weights, chosen, (x * chosen).round_())
    for step in (*range(-4, 0), *range(1, 5)):
        inverse = torch.div(_float32(top, 0.1, step), largest)
        found = _distance(x, weights, inverse, (x * inverse).round_().clamp_(max=top))
        chosen = torch.where(found < best, inverse, chosen)
        best = torch.where(found < best, found, best)
    levels = (x * chosen).round_().clamp_(max=top)
    dot, norm = _climb(x, weights, levels, top)
    nothing = largest < NOTHING
    scale = torch.where((norm > 0) & ~nothing, dot / norm, 0.0)
    return scale, levels.masked_fill_(nothing, 0.0)


def _distance(x: Tensor, weights: Tensor, inverse: Tensor, levels: Tensor) -> Tensor:
    difference = x - levels.mul_(inverse.reciprocal())
    return ordered_sum((weights * difference).mul_(difference))


def _climb(x: Tensor, weights: Tensor, levels: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Change levels in place; sum w x l and sum w l^2."""
    weighted = weights * x
    dot, norm = ordered_sum(weighted * levels), ordered_sum(weights * levels * levels)
    for _ in range(5):
        before = levels.clone()
        for value, weight, product, level in zip(x, weights, weighted, levels, strict=True):
            rest = dot - product * level
            square = norm - weight * level * level
            tried = (value * square / rest).round_().clamp_(max=top)
            moved_dot = rest + product * tried
            moved_norm = square + weight * tried * tried
            better = (rest > 0) & (square > 0) & (tried != level)
            better &= moved_dot * moved_dot * norm > dot * dot * moved_norm
            level.copy_(torch.where(better, tried, level))
            dot = torch.where(better, moved_dot, dot)
            norm = torch.where(better, moved_norm, norm)
        if torch.equal(before, levels):
            break
    return dot, norm


def round_away(x: Tensor) -> Tensor:
    """C's roundf: to the nearest whole number, halves away from zero."""
    whole = x.trunc()
    return torch.where((x - whole).abs() >= 0.5, whole + x.sign(), whole)
