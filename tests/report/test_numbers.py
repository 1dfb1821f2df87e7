"""How numbers read."""

from __future__ import annotations

import math

import pytest

from llmopt.report import numbers
from llmopt.specs.metrics import METRICS, Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (0.0, "0"),
        (0.00123456, "0.00123"),
        (1.23456e-7, "1.23e-07"),
        (12.3456, "12.3"),
        (1234.56, "1,230"),
        (-0.5, "-0.500"),
        (3.2e9, "3.20e+09"),
    ],
)
def test_short(value: float | None, text: str) -> None:
    assert numbers.short(value) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (None, "–"),
        (Interval(math.nan, math.nan, math.nan), "–"),
        (0.00123, "0.00123"),
        (Interval(0.00123, math.nan, 1.0), "0.00123"),
        (Interval(value=0.0012345, low=0.0011, high=0.0013666), "0.00123 (0.00110–0.00137)"),
        (Interval(value=0.0113, low=0.0105, high=0.0121), "0.0113 (0.0105–0.0121)"),
        (Interval(value=1234.5, low=1100, high=1400), "1,234 (1,100–1,400)"),
        (Interval(value=0.0, low=0.0, high=0.0), "0 (0–0)"),
        (Interval(value=math.inf, low=1.0, high=math.inf), "∞"),
        (Interval(value=2e-9, low=1e-9, high=3e-9), "2.00e-09 (1.00e-09–3.00e-09)"),
    ],
)
def test_interval(estimate: float | Interval | None, text: str) -> None:
    assert numbers.interval(estimate) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "–"), (3_210_000, "3.21"), (9_999_000, "10.0"), (99_960_000, "100"), (2e9, "2,000")],
)
def test_megabytes(size: float | None, text: str) -> None:
    assert numbers.megabytes(size) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (1.0, "100.0%"),
        (0.9976, "99.76%"),
        (0.5, "50.0%"),
        (0.004, "0.40%"),
        (0, "0.0%"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert numbers.percent(share) == text


@pytest.mark.parametrize(
    ("name", "found", "heading", "text"),
    [
        ("perplexity", 12.345, "perplexity", "12.35"),
        ("perplexity", 123456.0, "perplexity", "123,500"),
        ("perplexity", math.inf, "perplexity", "∞"),
        ("agreement", Interval(0.8, 0.72, 0.88), "agreement", "80.0% (72.0%–88.0%)"),
        ("agreement", Interval(0.8, math.nan, math.nan), "agreement", "80.0%"),
        ("kl.mean", Interval(0.0113, 0.0105, 0.0121), "kl.mean, nats", "0.0113 (0.0105–0.0121)"),
        ("size.bytes", 3_210_000, "size.bytes, MB", "3.21"),
        ("speed.first_token", 0.01234, "speed.first_token, ms", "12.3"),
        ("speed.decode", None, "speed.decode, tokens/s", "–"),
    ],
)
def test_a_metric_is_shown_in_its_unit(
    name: str, found: float | Interval | None, heading: str, text: str
) -> None:
    assert numbers.heading(METRICS[name]) == heading
    assert numbers.measured(METRICS[name], found) == text
