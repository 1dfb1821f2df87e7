"""The grammar of gates, and that nothing unmeasured or unreal ever passes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from llmopt.errors import RequestError
from llmopt.evaluate.gates import Gate, check, default_gates, parse

METRICS = {
    "kl": {"mean": {"value": 0.04, "low": 0.03, "high": 0.06}, "p99": 0.5},
    "agreement": {"value": 0.97, "low": 0.96, "high": 0.98},
    "size": {"ratio": 0.3, "note": "text", "measured": True, "unknown": None},
}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("kl.mean < 0.05", True),
        ("kl.mean.high < 0.05", False),
        ("kl.mean.value<0.05", True),
        ("agreement >= 0.97", True),
        ("agreement > 0.97", False),
        ("  size.ratio <= 3e-1  ", True),
        ("kl.p99 > 0.5", False),
    ],
)
def test_expressions(text: str, passed: bool) -> None:
    (verdict,) = check([parse(text)], METRICS)
    assert verdict.passed is passed


@pytest.mark.parametrize(
    "text",
    ["", "kl.mean", "kl.mean <", "< 0.05", "kl.mean == 1", "kl.mean < x", "kl.mean < nan",
     "kl.mean < inf", "kl.mean < 1 < 2", "kl mean < 1", "kl.mean < 1 or agreement > 0"],
)  # fmt: skip
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(RequestError, match="is not a gate"):
        parse(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
def test_what_is_not_finite_never_passes(value: float, sign: str) -> None:
    (verdict,) = check([Gate("kl.p99", sign, 1.0)], {"kl": {"p99": value}})
    assert not verdict.passed


def test_unknown_metric_names_the_nearest_and_the_rest() -> None:
    with pytest.raises(RequestError, match=r"'kl\.meen < 0\.05'") as caught:
        check([parse("kl.meen < 0.05")], METRICS)
    assert "did you mean 'kl.mean'?" in str(caught.value.hint)
    assert "size.ratio" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["size.note", "size.measured", "size.unknown", "kl"])
def test_what_holds_no_number_is_no_metric(name: str) -> None:
    with pytest.raises(RequestError, match="no metric"):
        check([Gate(name, "<", 1.0)], METRICS)


def test_a_gate_prints_as_it_is_written() -> None:
    assert str(parse("kl.mean<0.050")) == "kl.mean < 0.05"
    (verdict,) = check([parse("kl.p99 < 1")], METRICS)
    assert verdict.as_dict() == {"gate": "kl.p99 < 1", "value": 0.5, "passed": True}


def test_gates_need_no_torch() -> None:
    code = "import sys, llmopt.evaluate.gates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_default_gates_follow_the_bits() -> None:
    limits = [default_gates(bits)[0].limit for bits in (1.0, 2, 3, 3.5, 4, 6, 8, 16)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] == limits[1]
    assert limits[-1] == limits[-2]
    assert 0.3 < limits[3] < 1.0


def test_default_gates_ask_for_what_was_measured_only() -> None:
    metrics = {"kl": {"mean": {"value": 0.02}}}
    assert all(verdict.passed for verdict in check(default_gates(4), metrics))
    metrics["weights"] = {"offset": 0.1, "gain": 0.03}
    assert all(verdict.passed for verdict in check(default_gates(4, fewest=4), metrics))
    metrics["weights"] = {"offset": 1.0, "gain": 0.03}
    assert [v.passed for v in check(default_gates(4, fewest=4), metrics)] == [True, False, True]


def test_one_linear_of_two_bits_may_gain_more() -> None:
    gain = [default_gates(4, fewest=fewest)[2].limit for fewest in (2, 3, 4, 8)]
    assert gain == [0.7, 0.15, 0.15, 0.15]
