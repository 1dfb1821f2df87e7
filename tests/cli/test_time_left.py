"""What is said of the time left, by a clock that only the test moves."""

from __future__ import annotations

import random

import pytest
from rich.console import Console
from rich.progress import Progress

from llmopt.cli.output import Output, ProgressReporter, columns
from llmopt.cli.time_left import TimeLeft


class Clock:
    """Stands still until it is told to move."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


class Step:
    id = "w4"
    verb = "quantize"


def begun(total: int) -> tuple[Clock, TimeLeft]:
    """A count of which nothing is done yet."""
    clock = Clock()
    left = TimeLeft(clock)
    left.heard(0, total)
    return clock, left


def test_nothing_is_known_before_the_first_unit() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.seconds is None
    left.heard(0, 32)
    clock.passes(20.0)
    assert left.seconds is None
    left.heard(1, 32)
    assert left.seconds == pytest.approx(31 * 20.0)


def test_time_passes_between_reports_and_a_late_unit_is_not_negative() -> None:
    clock, left = begun(4)
    clock.passes(20.0)
    left.heard(1, 4)
    clock.passes(5.0)
    assert left.seconds == pytest.approx(55.0)
    clock.passes(30.0)
    assert left.seconds == pytest.approx(40.0)
    left.heard(4, 4)
    assert left.seconds == 0.0


def test_units_of_an_earlier_run_do_not_count() -> None:
    clock, left = begun(32)
    clock.passes(3.0)
    left.heard(17, 32)  # sixteen were replayed
    assert left.seconds is None
    clock.passes(20.0)
    left.heard(18, 32)
    assert left.seconds == pytest.approx(14 * 20.0)


def test_one_unit_that_took_long_is_outvoted() -> None:
    clock, left = begun(32)
    for done in range(1, 8):
        clock.passes(8 * 3600.0 if done == 5 else 10.0)
        left.heard(done, 32)
    assert left.seconds == pytest.approx(25 * 10.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_is_right_within_a_factor_after_the_first_unit(seed: int) -> None:
    """Blocks whose times scatter by 15 %, as on a machine that does other things, too."""
    clock, times = Clock(), random.Random(seed)
    took = [60.0 * times.uniform(0.85, 1.15) for _ in range(32)]
    left = TimeLeft(clock)
    left.heard(0, 32)
    for done, seconds in enumerate(took[:-1], 1):
        clock.passes(seconds)
        left.heard(done, 32)
        assert left.seconds is not None
        assert 1 / 1.5 < left.seconds / sum(took[done:]) < 1.5


def test_plain_lines_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    reporter = ProgressReporter(Output(), None, clock)
    for done in range(21):
        reporter.progress(Step(), "blocks", done, 20)  # type: ignore[arg-type]
        clock.passes(35.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "w4: blocks 2/20, about 10 min left"
    assert lines[1] == "w4: blocks 4/20, about 9 min left"
    assert lines[-1] == "w4: blocks 20/20"
    assert len(lines) == 10


def test_long_units_are_told_of_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    reporter = ProgressReporter(Output(), None, clock)
    for done in range(3):
        reporter.progress(Step(), "blocks", done, 32)  # type: ignore[arg-type]
        clock.passes(300.0)
    assert capsys.readouterr().err.splitlines() == [
        "w4: blocks 1/32, about 2.5 h left",
        "w4: blocks 2/32, about 2.5 h left",
    ]


def test_bars_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    clock, console = Clock(), Console(force_terminal=True, width=80)
    with Progress(*columns(), console=console) as bars:
        reporter = ProgressReporter(Output(), bars, clock)
        reporter.progress(Step(), "blocks", 0, 32)  # type: ignore[arg-type]
        clock.passes(25.0)
        reporter.progress(Step(), "blocks", 3, 32)  # type: ignore[arg-type]
        clock.passes(25.0)
        reporter.progress(Step(), "blocks", 4, 32)  # type: ignore[arg-type]
    assert "4/32, ~12 min left" in capsys.readouterr().out
