"""What a bench measures: each metric is declared here once, and has one name everywhere.

The name stands in bench.json, in gates, in the evidence of manifests and in reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95% confidence interval; each may be not a number."""

    value: float
    low: float
    high: float


#: what one metric is found to be
Measurement = int | float | Interval
#: measurements by the names of their metrics
Metrics = Mapping[str, Measurement]


def value_of(measurement: Measurement) -> float:
    """The number itself, or an interval's estimate."""
    return measurement.value if isinstance(measurement, Interval) else measurement


def ends_of(measurement: Measurement) -> tuple[float, float]:
    """The ends of its interval; the value itself in place of one that is not known."""
    value = value_of(measurement)
    if not isinstance(measurement, Interval):
        return value, value
    low, high = measurement.low, measurement.high
    return (value if math.isnan(low) else low), (value if math.isnan(high) else high)


@dataclass(frozen=True)
class MetricSpec:
    """One quantity. `unit` is empty for a plain number; a share lies between 0 and 1.

    interval: it comes with a 95% interval, whose ends gates call `NAME.low` and `NAME.high`.
    needs_base: it says how a model compares with another.
    """

    name: str
    unit: Literal["", "nats", "share", "steps", "bytes", "bits", "seconds", "tokens/s"]
    better: Literal["lower", "higher"]
    summary: str
    interval: bool = False
    needs_base: bool = False

    @property
    def gate_names(self) -> tuple[str, ...]:
        """What gates may say of it."""
        ends = (".low", ".high") if self.interval else ()
        return (self.name, *(f"{self.name}{end}" for end in ends))


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """What finds metrics: `measure` in `module` yields them; see llmopt.evaluate.probe.

    It yields all of them, or those that need no base where there is none, or nothing where it has
    nothing to look at. `counts`: what it looks at one by one. `alone`: in a process of its own,
    after all others; what it finds depends on the machine and the moment, stands in the run record
    alone, and is held to no gate.
    """

    id: str
    module: str
    counts: str
    metrics: tuple[MetricSpec, ...]
    alone: bool = False


_SIZE = (
    MetricSpec("size.bytes", "bytes", "lower", "bytes of the weight files, headers included"),
    MetricSpec("size.ratio", "share", "lower", "bytes over the base's", needs_base=True),
    MetricSpec("bits_per_weight", "bits", "lower", "bits of the weight files per weight stored"),
)
_CODES = (
    MetricSpec(
        "weights.offset", "steps", "lower",
        "largest mean error of a group of weights, r.m.s. over a linear, in steps of its grid",
        needs_base=True,
    ),
    MetricSpec(
        "weights.gain", "", "lower",
        "how far any linear's weights are from following its codes",
        needs_base=True,
    ),
)  # fmt: skip
_DIVERGENCE = (
    MetricSpec(
        "kl.mean", "nats", "lower", "mean KL divergence KL(base ‖ model) per position",
        needs_base=True, interval=True,
    ),
    MetricSpec("kl.median", "nats", "lower", "median over positions", needs_base=True),
    MetricSpec("kl.p99", "nats", "lower", "99th percentile over positions", needs_base=True),
    MetricSpec("kl.p99_9", "nats", "lower", "99.9th percentile over positions", needs_base=True),
    MetricSpec("kl.max", "nats", "lower", "largest of any position", needs_base=True),
    MetricSpec(
        "agreement", "share", "higher", "positions where both models' top token is the same",
        needs_base=True, interval=True,
    ),
    MetricSpec(
        "flips.lost", "share", "lower", "positions whose top token went from right to wrong",
        needs_base=True,
    ),
    MetricSpec(
        "flips.gained", "share", "higher", "positions whose top token went from wrong to right",
        needs_base=True,
    ),
    MetricSpec(
        "flips.changed", "share", "lower", "positions whose top token is another wrong one",
        needs_base=True,
    ),
    MetricSpec(
        "perplexity", "", "lower", "exp of the mean negative log likelihood per token",
        interval=True,
    ),
    MetricSpec(
        "perplexity.ratio", "", "lower", "perplexity over the base's",
        needs_base=True, interval=True,
    ),
)  # fmt: skip
_SPEED = (
    MetricSpec("speed.first_token", "seconds", "lower", "from the call to the first token"),
    MetricSpec("speed.prefill", "tokens/s", "higher", "prompt over the time to the first token"),
    MetricSpec("speed.decode", "tokens/s", "higher", "tokens after the first"),
    MetricSpec("speed.token_p50", "seconds", "lower", "median time of a later token"),
    MetricSpec("speed.token_p95", "seconds", "lower", "95th percentile of a later token's time"),
    MetricSpec("memory.weights", "bytes", "lower", "what the weights take in memory"),
    MetricSpec("memory.loaded", "bytes", "lower", "the whole process with the model loaded"),
    MetricSpec("memory.peak", "bytes", "lower", "the whole process at its peak"),
)
#: the cheapest first: what a gate can refuse without running the model comes before what runs it
PROBES: dict[str, ProbeSpec] = {
    "size": ProbeSpec(id="size", module="llmopt.evaluate.size", counts="models", metrics=_SIZE),
    "codes": ProbeSpec(
        id="codes", module="llmopt.evaluate.codes", counts="linears", metrics=_CODES
    ),
    "divergence": ProbeSpec(
        id="divergence",
        module="llmopt.evaluate.divergence",
        counts="windows",
        metrics=_DIVERGENCE,
    ),
    "speed": ProbeSpec(
        id="speed", module="llmopt.evaluate.alone", counts="models", metrics=_SPEED, alone=True
    ),
}
METRICS: dict[str, MetricSpec] = {
    metric.name: metric for probe in PROBES.values() for metric in probe.metrics
}
#: what a gate may name -> the metric that it speaks of
GATE_METRICS: dict[str, MetricSpec] = {
    name: metric
    for probe in PROBES.values()
    if not probe.alone
    for metric in probe.metrics
    for name in metric.gate_names
}
