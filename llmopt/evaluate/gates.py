"""Quality gates: expressions such as `kl.mean < 0.05` judged as metrics are measured."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmopt.errors import RequestError
from llmopt.evaluate.probe import Reading
from llmopt.model.results import Verdict
from llmopt.specs.metrics import Interval, Metrics, value_of

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
    """`metric` is one of GATE_METRICS: a metric, or an end of its interval. `default`: nobody
    set it."""

    metric: str
    operator: str
    limit: float
    default: bool = False

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"

    def value(self, metrics: Metrics) -> float | None:
        """What it is about; None where that is not among the metrics."""
        if self.metric in metrics:
            return value_of(metrics[self.metric])
        name, _, end = self.metric.rpartition(".")
        found = metrics.get(name)
        if not isinstance(found, Interval):
            return None
        return {"low": found.low, "high": found.high}.get(end)

    def judged(self, value: float) -> Verdict:
        """What is not finite passes no gate."""
        passed = math.isfinite(value) and _OPERATORS[self.operator](value, self.limit)
        return Verdict(gate=str(self), value=value, passed=passed, default=self.default)


class Judge:
    """Holds one model to its gates while it is being measured.

    A verdict is settled by what a probe knows once it has looked at everything. A rule that
    settles one sooner, from the estimates on part of the text, has its place in `hear`.
    """

    def __init__(self, gates: Iterable[Gate]) -> None:
        self._gates = tuple(gates)
        self._settled: dict[Gate, Verdict] = {}
        self._measured: dict[str, None] = {}

    def hear(self, reading: Reading) -> None:
        """Take what a probe knows by now."""
        if not reading.final:
            return
        self._measured |= dict.fromkeys(reading.metrics)
        for gate in self._open:
            if (value := gate.value(reading.metrics)) is not None:
                self._settled[gate] = gate.judged(value)

    @property
    def settled(self) -> bool:
        """Whether nothing that is still to be measured can change a verdict."""
        return not self._open

    def verdicts(self) -> list[Verdict]:
        """One for each gate, in their order.

        A metric that was not measured is a RequestError: a gate that checks nothing must not pass.
        """
        if not self.settled:
            gate = self._open[0]
            raise RequestError(
                f"gate {str(gate)!r}: {gate.metric} was not measured",
                hint=f"measured: {', '.join(self._measured)}",
            )
        return [self._settled[gate] for gate in self._gates]

    @property
    def _open(self) -> list[Gate]:
        return [gate for gate in self._gates if gate not in self._settled]


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


def default_gates(bits: float, *, fewest: int | None = None) -> list[Gate]:
    """The gates against collapse and damage of an artifact quantized to `bits` a code on average.

    `fewest` are the bits of the linear that has the fewest, None where `weights` (see
    evaluate.codes) was not measured. KL divergence tells a model that collapsed from one that
    was rounded; what it cannot see at few bits, or in a linear that matters little, the codes
    show: see evaluate.codes.
    """
    known = sorted(_SOUND)
    logs = [math.log(_SOUND[each][0]) for each in known]
    limit = _rounded(math.exp(_interpolate(bits, known, logs)))
    found = [Gate("kl.mean", "<", limit, default=True)]
    if fewest is not None:
        gain = _SOUND[max(each for each in known if each <= max(fewest, known[0]))][1]
        found.append(Gate("weights.offset", "<", _SOUND_OFFSET, default=True))
        found.append(Gate("weights.gain", "<", gain, default=True))
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
