"""Confidence intervals over windows of text. numpy only.

Tokens of one window are not independent, windows nearly are: so whole windows are drawn, and
everything that is compared is drawn with the same windows (paired).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from llmopt.specs.metrics import Interval

Array = NDArray[np.float64]

_CELLS_AT_ONCE = 4_000_000  # resamples x windows drawn together: 32 MB


def bootstrap_sums(columns: Array, *, resamples: int = 2000, seed: int = 0) -> Array:
    """Column sums over windows drawn with replacement.

    columns: [windows, quantities], per-window sums. Returns [resamples, quantities]; every
    quantity of a row is summed over the same draw, so ratios of them are paired.
    """
    windows = len(columns)
    rng = np.random.default_rng(seed)
    share = np.full(windows, 1.0 / windows)
    drawn = []
    for start in range(0, resamples, step := max(1, _CELLS_AT_ONCE // windows)):
        counts = rng.multinomial(windows, share, size=min(step, resamples - start))
        drawn.append(counts.astype(np.float64) @ columns)
    return np.concatenate(drawn)


def interval(value: float, draws: Array, windows: int) -> Interval:
    """The 95% expanded percentile interval of `value` from its bootstrap `draws`.

    The plain percentile interval is too narrow for few windows, by the ratio of the normal to
    Student's quantile and by sqrt((n - 1) / n); taking percentiles that much further out mends
    both (T. Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
    A draw that is not a number makes both ends so, as does a single window.
    """
    if windows < 2 or not np.isfinite(draws).all():
        return Interval(value, math.nan, math.nan)
    reach = math.sqrt(windows / (windows - 1)) * _student_quantile(0.975, windows - 1)
    tail = NormalDist().cdf(-reach)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _student_quantile(probability: float, freedom: int) -> float:
    """Student's t quantile by its expansion in 1/freedom (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
