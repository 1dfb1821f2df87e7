"""The grammar of gates, and that nothing unmeasured or unreal ever passes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from llmopt.errors import RequestError
from llmopt.evaluate.gates import Gate, Judge, default_gates, parse
from llmopt.evaluate.probe import Reading
from llmopt.model.results import Verdict
from llmopt.specs.metrics import Interval, Metrics

METRICS: Metrics = {
    "kl.mean": Interval(0.04, 0.03, 0.06),
    "kl.p99": 0.5,
    "agreement": Interval(0.97, 0.96, 0.98),
    "size.ratio": 0.3,
}


def check(gates: list[Gate], metrics: Metrics) -> list[Verdict]:
    judge = Judge(gates)
    judge.hear(Reading(1, 1, lambda: metrics))
    return judge.verdicts()


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("kl.mean < 0.05", True),
        ("kl.mean.high < 0.05", False),
        ("kl.mean.low<0.03", False),
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
    (verdict,) = check([Gate("kl.p99", sign, 1.0)], {"kl.p99": value})
    assert not verdict.passed


@pytest.mark.parametrize("name", ["kl.meen", "kl", "kl.mean.value", "kl.p99.low"])
def test_a_gate_on_what_was_not_measured_is_an_error(name: str) -> None:
    with pytest.raises(RequestError, match=f"'{name} < 1': {name} was not measured") as caught:
        check([Gate(name, "<", 1.0)], METRICS)
    assert caught.value.hint == "measured: kl.mean, kl.p99, agreement, size.ratio"


def test_verdicts_are_settled_as_probes_end_whatever_the_order_of_gates() -> None:
    judge = Judge(map(parse, ("kl.mean < 0.05", "size.ratio < 0.5")))
    judge.hear(Reading(1, 1, lambda: {"size.ratio": 0.3}))
    assert not judge.settled
    for done, mean in ((0, None), (1, 0.01), (2, 0.2)):
        assert not judge.settled
        judge.hear(Reading(done, 2, lambda mean=mean: {"kl.mean": mean}))  # type: ignore[misc]
    assert judge.settled
    assert [(v.value, v.passed) for v in judge.verdicts()] == [(0.2, False), (0.3, True)]


def test_estimates_that_nothing_asks_for_are_not_worked_out() -> None:
    def metrics() -> Metrics:
        raise AssertionError

    Judge([parse("kl.mean < 1")]).hear(Reading(1, 2, metrics))


def test_a_gate_prints_as_it_is_written() -> None:
    assert str(parse("kl.mean<0.050")) == "kl.mean < 0.05"
    (verdict,) = check([parse("kl.p99 < 1")], METRICS)
    assert verdict.document() == {
        "gate": "kl.p99 < 1", "value": 0.5, "passed": True, "default": False,
    }  # fmt: skip


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
    metrics: Metrics = {"kl.mean": 0.02}
    assert all(v.passed and v.default for v in check(default_gates(4), metrics))
    codes: Metrics = {"weights.offset": 0.1, "weights.gain": 0.03}
    assert all(v.passed for v in check(default_gates(4, fewest=4), {**metrics, **codes}))
    off = {**metrics, **codes, "weights.offset": 1.0}
    assert [v.passed for v in check(default_gates(4, fewest=4), off)] == [True, False, True]


def test_one_linear_of_two_bits_may_gain_more() -> None:
    gain = [default_gates(4, fewest=fewest)[2].limit for fewest in (2, 3, 4, 8)]
    assert gain == [0.7, 0.15, 0.15, 0.15]
