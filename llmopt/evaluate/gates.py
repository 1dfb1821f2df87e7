"""Quality gates: expressions such as `kl.mean < 0.05` checked against measured metrics."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import RequestError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: bits of the codes -> largest mean KL, largest weights.gain of an artifact that is sound. Set by
#: scripts/calibrate_gate.py on a model of a million weights, which rounding hurts more than it
#: does large ones; CONTRIBUTING says what it was then tested on.
_SOUND = {2: (3.0, 0.7), 3: (1.0, 0.15), 4: (0.3, 0.15), 8: (0.01, 0.15)}
#: largest weights.offset: rounding stays below 0.2, zero points that are one off give 1
_SOUND_OFFSET = 0.4
_GATE = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|<|>)\s*([^\s<>=]+)\s*")


@dataclass(frozen=True)
class Gate:
    """`metric` is a dotted path into the metrics; an interval's own name means its value."""

    metric: str
    operator: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"


@dataclass(frozen=True)
class Verdict:
    """What one gate found."""

    gate: Gate
    value: float
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        return {"gate": str(self.gate), "value": self.value, "passed": self.passed}


def parse(text: str) -> Gate:
    """Read `metric operator number`; RequestError where it is not that."""
    match = _GATE.fullmatch(text)
    try:
        limit = float(match[3]) if match else math.nan
    except ValueError:
        limit = math.nan
    if match is None or not math.isfinite(limit):
        raise RequestError(
            f"{text!r} is not a gate",
            hint='write a metric, < <= > or >=, a number: "kl.mean < 0.05"',
        )
    return Gate(match[1], match[2], limit)


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number in nested `metrics` under its dotted path; `x.value` answers to `x` too."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if isinstance(value.get("value"), int | float):
                flat[path] = float(value["value"])
            flat.update(flatten(value, f"{path}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[path] = float(value)
    return flat


def check(gates: Iterable[Gate], metrics: Mapping[str, Any]) -> list[Verdict]:
    """Hold each gate to nested `metrics`. What is not finite passes no gate.

    A metric that was not measured is a RequestError: a gate that checks nothing must not pass.
    """
    flat = flatten(metrics)
    verdicts = []
    for gate in gates:
        if gate.metric not in flat:
            near = difflib.get_close_matches(gate.metric, flat, n=1)
            listing = ", ".join(name for name in flat if not name.endswith(".value"))
            raise RequestError(
                f"gate {str(gate)!r}: no metric {gate.metric!r} was measured",
                hint=(f"did you mean {near[0]!r}? " if near else "") + f"measured: {listing}",
            )
        value = flat[gate.metric]
        passed = math.isfinite(value) and _OPERATORS[gate.operator](value, gate.limit)
        verdicts.append(Verdict(gate, value, passed))
    return verdicts


def default_gates(bits: float, *, fewest: int | None = None) -> list[Gate]:
    """The gates against collapse and damage of an artifact quantized to `bits` a code on average.

    `fewest` are the bits of the linear that has the fewest, None where `weights` (see
    evaluate.weights) was not measured. KL divergence tells a model that collapsed from one that
    was rounded; what it cannot see at few bits, or in a linear that matters little, the codes
    show: see evaluate.weights.
    """
    known = sorted(_SOUND)
    logs = [math.log(_SOUND[each][0]) for each in known]
    found = [Gate("kl.mean", "<", _rounded(math.exp(_interpolate(bits, known, logs))))]
    if fewest is not None:
        gain = _SOUND[max(each for each in known if each <= max(fewest, known[0]))][1]
        found.append(Gate("weights.offset", "<", _SOUND_OFFSET))
        found.append(Gate("weights.gain", "<", gain))
    return found


def _interpolate(x: float, xs: list[int], ys: list[float]) -> float:
    """Piecewise linear through (xs, ys), constant outside."""
    if x <= xs[0]:
        return ys[0]
    for left, right, low, high in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]


def _rounded(value: float) -> float:
    """Two significant digits: a limit is a judgement, not a measurement."""
    return float(f"{value:.2g}")
