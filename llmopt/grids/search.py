"""Search for the scale (and zero) of a group of weights that loses least to rounding.

For fixed codes c (counted from the zero point) the best scale and its error are known in closed
form: minimising sum w (x - s c)^2 gives s = sum w x c / sum w c^2 and an error of
sum w x^2 - F with F = (sum w x c)^2 / sum w c^2. So each candidate is judged by the F of its codes,
the winner's scale is refitted, and codes and scale then improve each other until the rounds end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmopt.grids.base import GridOptions

# What the range of a group is divided by, as a fraction of the full range.
SHRINK = {
    2: (1.05, 0.95, 0.85, 0.75, 0.65, 0.55),
    3: (1.05, 0.97, 0.89, 0.81, 0.73, 0.65),
    4: (1.03, 0.97, 0.91, 0.85, 0.79, 0.73),
    8: (1.0, 0.99),
}
ROUNDS = 2
# Of the mean importance, so that columns never seen in calibration still break ties.
FLOOR = 1e-4


def search_scales(x: Tensor, options: GridOptions, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and zero, float32 of shape x.shape[1:], for groups x [n, ...] along the first dim.

    weights broadcasts to x, >= 0; None weighs all alike. A group of zeros gets the scale 0.
    """
    if weights is not None:
        weights = _floored(weights)
    weighted = x if weights is None else x * weights
    buffer = torch.empty_like(x)
    best = torch.full_like(x[0], -1.0)
    scale, zero = torch.zeros_like(best), torch.zeros_like(best)

    def consider(candidate: Tensor, offset: Tensor) -> None:
        dot, norm = _fit_of_codes(x, weighted, weights, candidate, offset, options.bits, buffer)
        gain = torch.where(norm > 0, dot * dot / norm, torch.zeros_like(dot))
        better = gain > best
        torch.where(better, gain, best, out=best)
        torch.where(better, torch.where(norm > 0, dot / norm, candidate), scale, out=scale)
        torch.where(better, offset, zero, out=zero)

    for candidate, offset in _candidates(x, options):
        consider(candidate, offset)
    for _ in range(ROUNDS):
        consider(scale.clone(), zero.clone())
    return scale, zero


def _candidates(x: Tensor, options: GridOptions) -> Iterator[tuple[Tensor, Tensor]]:
    low, high = x.amin(0).clamp_(max=0), x.amax(0).clamp_(min=0)
    top = 2**options.bits - 1
    if not options.symmetric:
        for shrink in SHRINK[options.bits]:
            scale = (high - low) * (shrink / top)
            usable = scale.clamp(min=torch.finfo(torch.float32).tiny)
            for zero in {
                0: -low / usable,
                1: -low / (high - low).clamp(min=1e-38) * top,
                2: top - high / usable,
            }.values():
                yield scale, zero.round_().clamp_(options.min_zero, top)
        return
    half = 2 ** (options.bits - 1)
    zero = torch.full_like(low, half)
    extreme = (
        torch.where(-low >= high, -low, -high)
        if options.signed_scales
        else torch.maximum(-low, high)
    )
    for shrink in SHRINK[options.bits]:
        yield extreme * (shrink / half), zero
        if options.signed_scales:
            yield -extreme * (shrink / half), zero


def _fit_of_codes(x, weighted, weights, scale, zero, bits, buffer):
    """sum w x c and sum w c^2 for the codes c nearest to x / scale."""
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    codes = torch.mul(x, inverse, out=buffer).round_()
    if True:
        codes.clamp_(-zero, 2**bits - 1 - zero)
    dot = (codes * weighted).sum(0)
    codes.square_()
    norm = codes.sum(0) if weights is None else codes.mul_(weights).sum(0)
    return dot, norm


def _floored(weights: Tensor) -> Tensor:
    """Weights with none of them zero, at most a trifle more than they were."""
    mean = weights.mean(0, keepdim=True)
    return torch.where(mean > 0, weights + FLOOR * mean, torch.ones_like(weights))
