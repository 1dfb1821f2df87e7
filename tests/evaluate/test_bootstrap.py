"""The intervals must cover what they claim to, for few windows and for skewed data too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llmopt.evaluate.bootstrap import _student_quantile, bootstrap_sums, interval


def _coverage(draw: Any, truth: float, windows: int, trials: int = 400) -> float:
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(trials):
        data = draw(rng, windows)
        draws = bootstrap_sums(data[:, None], resamples=500, seed=trial)[:, 0] / windows
        found = interval(float(data.mean()), draws, windows)
        hits += found.low <= truth <= found.high
    return hits / trials


@pytest.mark.parametrize(("windows", "least"), [(8, 0.87), (16, 0.92), (64, 0.92)])
def test_normal_windows_are_covered_95_times_in_100(windows: int, least: float) -> None:
    coverage = _coverage(lambda rng, n: rng.normal(3.0, 1.0, n), 3.0, windows)
    assert least <= coverage <= 0.98


def test_skewed_windows_are_covered_nearly_as_well() -> None:
    coverage = _coverage(lambda rng, n: rng.gamma(2.0, 0.5, n), 1.0, 32)
    assert 0.90 <= coverage <= 0.98


def test_unpaired_intervals_of_paired_data_would_be_far_wider() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(3.0, 1.0, 64)
    columns = np.stack([base, base + 0.01 + rng.normal(0, 0.001, 64)], axis=1)
    draws = bootstrap_sums(columns, seed=1) / 64
    difference = interval(0.01, draws[:, 1] - draws[:, 0], 64)
    assert difference.low > 0.009
    assert difference.high < 0.011
    assert np.ptp(draws[:, 0]) > 0.3


def test_same_seed_same_draws_and_chunks_do_not_lose_any(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).normal(size=(10, 3))
    draws = bootstrap_sums(columns, resamples=103, seed=5)
    assert draws.shape == (103, 3)
    assert np.array_equal(draws, bootstrap_sums(columns, resamples=103, seed=5))
    assert not np.array_equal(draws, bootstrap_sums(columns, resamples=103, seed=6))
    monkeypatch.setattr("llmopt.evaluate.bootstrap._CELLS_AT_ONCE", 50)
    assert np.array_equal(draws, bootstrap_sums(columns, resamples=103, seed=5))


def test_one_draw_that_is_not_finite_leaves_no_interval() -> None:
    found = interval(1.0, np.asarray([1.0, 1.1, math.inf]), 3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.7764), (9, 2.2622), (63, 1.9983)])
def test_student_quantile(freedom: int, expected: float) -> None:
    assert _student_quantile(0.975, freedom) == pytest.approx(expected, rel=5e-3)
