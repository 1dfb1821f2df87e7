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
