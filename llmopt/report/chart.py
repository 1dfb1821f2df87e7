"""The geometry of quality against size: a scatter plot with whiskers, in SVG's coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmopt.model.results import BenchEntry
from llmopt.report import numbers
from llmopt.report.comparison import Comparison
from llmopt.report.metric_tables import mark_of
from llmopt.report.recommendation import Recommendation, front, has_kl
from llmopt.report.sheet import Mark
from llmopt.specs.metrics import Interval

_LETTER = 7.2  # width of an average letter of a label, in pixels
_LINE = 16


@dataclass(frozen=True)
class Frame:
    """The size of a chart, and the edges of its plot."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    most_ticks: int


#: for screens as wide as a page, and for phones: each is drawn as large as it is shown
WIDE = Frame(960, 460, left=78, right=936, top=20, bottom=398, most_ticks=7)
NARROW = Frame(360, 340, left=74, right=350, top=12, bottom=284, most_ticks=4)


@dataclass(frozen=True)
class Tick:
    """Where a grid line stands, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """One model: its place, the ends of its whisker (None: no interval), its label's place."""

    name: str
    mark: Mark
    x: float
    y: float
    low: float | None
    high: float | None
    label_x: float
    label_y: float
    anchor: str
    description: str


@dataclass(frozen=True)
class Chart:
    """Everything the template draws; `front` is the path of the Pareto front."""

    points: tuple[Point, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    caption: str
    frame: Frame


@dataclass(frozen=True)
class _Scale:
    """Size in MB, linear, to x; KL in nats, logarithmic, to y (low KL at the bottom)."""

    frame: Frame
    smallest: float
    largest: float
    lowest: float
    highest: float

    def x(self, size: float) -> float:
        share = (size - self.smallest) / (self.largest - self.smallest)
        return round(self.frame.left + share * (self.frame.right - self.frame.left), 1)

    def y(self, kl: float) -> float:
        span = math.log10(self.highest / self.lowest)
        share = math.log10(max(kl, self.lowest) / self.lowest) / span
        return round(self.frame.bottom - share * (self.frame.bottom - self.frame.top), 1)


@dataclass
class _Boxes:
    """Rectangles (left, top, right, bottom) that labels must not cover."""

    frame: Frame
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def overlap(self, box: tuple[float, float, float, float]) -> float:
        """How much of `box` is covered, or lies outside the plot."""
        left, top, right, bottom = box
        frame = self.frame
        inside = max(0.0, min(right, frame.width - 4) - max(left, frame.left + 4)) * max(
            0.0, min(bottom, frame.bottom - 2) - max(top, frame.top)
        )
        covered = (right - left) * (bottom - top) - inside
        for a, b, c, d in self.taken:
            covered += max(0.0, min(right, c) - max(left, a)) * max(
                0.0, min(bottom, d) - max(top, b)
            )
        return covered


def chart(comparison: Comparison, recommended: Recommendation, frame: Frame = WIDE) -> Chart | None:
    """The plot of every model with a positive mean KL; None with fewer than two of them."""
    shown = [e for e in comparison.entries if not e.is_base and has_kl(e) and _mean(e) > 0]
    if len(shown) < 2:
        return None
    scale = _scale(shown, frame)
    return Chart(
        points=_points(shown, scale, recommended),
        front=_front_path(shown, scale),
        x_ticks=_size_ticks(scale),
        y_ticks=_kl_ticks(scale),
        caption=_caption(comparison, shown),
        frame=frame,
    )


def _mean(entry: BenchEntry) -> float:
    return entry.value("kl.mean") or 0.0


def _ends(entry: BenchEntry) -> tuple[float, float] | None:
    """The interval's positive ends, or None."""
    found = entry.metrics.get("kl.mean")
    if not isinstance(found, Interval) or not 0 < found.low <= found.high < math.inf:
        return None
    return found.low, found.high


def _scale(shown: list[BenchEntry], frame: Frame) -> _Scale:
    sizes = [entry.bytes / 1e6 for entry in shown]
    margin = 0.08 * (max(sizes) - min(sizes)) or 0.1 * max(sizes)
    values = [_mean(entry) for entry in shown]
    ends = [end for entry in shown for end in _ends(entry) or ()]
    low, high = min(values + ends), max(values + ends)
    start = max(0.0, min(sizes) - margin)
    return _Scale(frame, start, max(sizes) + margin, low / 1.5, high * 1.5)


def _points(
    shown: list[BenchEntry], scale: _Scale, recommended: Recommendation
) -> tuple[Point, ...]:
    boxes = _Boxes(scale.frame)
    for entry in shown:
        x, y = scale.x(entry.bytes / 1e6), scale.y(_mean(entry))
        ends = _ends(entry)
        top, bottom = (scale.y(ends[1]), scale.y(ends[0])) if ends else (y, y)
        boxes.taken.append((x - 7, min(top, y - 7), x + 7, max(bottom, y + 7)))
    boxes.taken += _front_boxes(shown, scale)
    return tuple(_point(entry, scale, recommended, boxes) for entry in shown)


def _point(entry: BenchEntry, scale: _Scale, recommended: Recommendation, boxes: _Boxes) -> Point:
    x, y = scale.x(entry.bytes / 1e6), scale.y(_mean(entry))
    label_x, label_y, anchor = _label_place(entry.name, x, y, boxes)
    ends = _ends(entry)
    kl = numbers.interval(entry.metrics.get("kl.mean"))
    return Point(
        name=entry.name,
        mark=mark_of(entry, recommended),
        x=x,
        y=y,
        low=scale.y(ends[0]) if ends else None,
        high=scale.y(ends[1]) if ends else None,
        label_x=label_x,
        label_y=label_y,
        anchor=anchor,
        description=f"{entry.name}: {numbers.megabytes(entry.bytes)} MB, mean KL {kl} nats",
    )


def _label_place(name: str, x: float, y: float, boxes: _Boxes) -> tuple[float, float, str]:
    """The least covered of six places around the point; the label's box is taken from then on."""
    width = len(name) * _LETTER
    places = [
        (x + 14, y + 4, "start"),
        (x - 14, y + 4, "end"),
        (x + 10, y - 11, "start"),
        (x + 10, y + 19, "start"),
        (x - 10, y - 11, "end"),
        (x - 10, y + 19, "end"),
    ]

    def box(place: tuple[float, float, str]) -> tuple[float, float, float, float]:
        left = place[0] if place[2] == "start" else place[0] - width
        return (left, place[1] - 12, left + width, place[1] - 12 + _LINE)

    best = min(places, key=lambda place: boxes.overlap(box(place)))
    boxes.taken.append(box(best))
    return round(best[0], 1), round(best[1], 1), best[2]


def _front_path(shown: list[BenchEntry], scale: _Scale) -> str:
    """Steps: at each size, the lowest KL that a model of at most that size has."""
    best = front(shown)
    first = best[0]
    path = f"M{scale.x(first.bytes / 1e6)} {scale.y(_mean(first))}"
    for entry in best[1:]:
        path += f"H{scale.x(entry.bytes / 1e6)}V{scale.y(_mean(entry))}"
    return f"{path}H{scale.frame.right}"


def _front_boxes(shown: list[BenchEntry], scale: _Scale) -> list[tuple[float, float, float, float]]:
    """The front's line as rectangles four pixels wide."""
    corners = [(scale.x(entry.bytes / 1e6), scale.y(_mean(entry))) for entry in front(shown)]
    boxes = []
    ends = [*corners[1:], (scale.frame.right, None)]
    for (x, y), (end, below) in zip(corners, ends, strict=True):
        boxes.append((x, y - 2, end, y + 2))
        if below is not None:
            boxes.append((end - 2, y, end + 2, below))
    return boxes


def _size_ticks(scale: _Scale) -> tuple[Tick, ...]:
    span = scale.largest - scale.smallest
    most = scale.frame.most_ticks
    power = 10 ** math.floor(math.log10(span / most))
    step = next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= most)
    first = math.ceil(scale.smallest / step)
    decimals = max(0, -math.floor(math.log10(step)))
    count = math.floor(scale.largest / step) - first + 1
    return tuple(
        Tick(scale.x((first + i) * step), f"{(first + i) * step:,.{decimals}f}")
        for i in range(count)
    )


def _kl_ticks(scale: _Scale) -> tuple[Tick, ...]:
    """Powers of ten, with 2 and 5 (or 1 to 9) between them where the range is short."""
    decades = math.log10(scale.highest / scale.lowest)
    steps = (1,) if decades > 3.5 else (1, 2, 5) if decades > 0.8 else tuple(range(1, 10))
    powers = range(math.floor(math.log10(scale.lowest)), math.ceil(math.log10(scale.highest)) + 1)
    values = [float(f"{step}e{power}") for power in powers for step in steps]
    return tuple(
        Tick(
            scale.y(value),
            f"{value:.7f}".rstrip("0").rstrip(".") if value >= 1e-5 else f"{value:g}",
        )
        for value in values
        if scale.lowest <= value <= scale.highest
    )


def _caption(comparison: Comparison, shown: list[BenchEntry]) -> str:
    base = next((entry for entry in comparison.entries if entry.is_base), None)
    text = "Lower left is better. Whiskers are 95% intervals; the line is the Pareto front"
    if base:
        text += f"; the original is {numbers.megabytes(base.bytes)} MB at a KL of 0"
    left_out = len(comparison.entries) - len(shown) - (base is not None)
    if left_out:
        text += f"; {left_out} without a positive KL not shown"
    return text + "."
