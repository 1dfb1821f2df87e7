"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.text import Text

from llmopt.artifact import finite
from llmopt.cli.time_left import Clock, TimeLeft
from llmopt.forecast.times import in_words

if TYPE_CHECKING:
    from llmopt.model.results import Verdict
    from llmopt.pipeline import StepResult
    from llmopt.planner import PlannedStep


_WIDTH = 110
#: names, paths and patterns are no markup, whatever brackets and colons they have
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
#: seconds after which a plain line says how far work is, though it is no tenth farther
_MINUTE = 60.0
#: how many documents were written to stdout: one is all there may be
documents = 0


@dataclass
class Output:
    """Where a command's words go. In JSON mode `result` is the only thing on stdout."""

    as_json: bool = False
    quiet: bool = False
    out: Console = field(default_factory=lambda: _console())
    err: Console = field(default_factory=lambda: Console(stderr=True, **_AS_IT_IS))

    def note(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self.err.print(text, soft_wrap=True)

    def show(self, *renderables: RenderableType) -> None:
        """Part of the result, for people."""
        if not self.as_json:
            for renderable in renderables:
                self.out.print(renderable, soft_wrap=isinstance(renderable, str))

    def text(self, text: str) -> None:
        """Part of the result, exactly as it is."""
        if not self.as_json:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")

    def text_chunk(self, text: str) -> None:
        """Text of the result as it comes, with no line end of its own."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    def result(self, document: object) -> None:
        """The result, for machines."""
        global documents
        if self.as_json:
            documents += 1
            json.dump(finite(document), sys.stdout, indent=1, ensure_ascii=False, allow_nan=False)
            sys.stdout.write("\n")


def _console() -> Console:
    """Standard output; wide enough for our tables where it is no terminal."""
    console = Console(**_AS_IT_IS)
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console


def found(verdict: Verdict) -> str:
    """The value that a gate found; what is not finite is None once it was written."""
    value = verdict.value
    return "no finite number" if value is None else f"{value:.4g}"


class ProgressReporter:
    """Draws a run: bars on a terminal, plain lines elsewhere."""

    def __init__(
        self, output: Output, progress: Progress | None, clock: Clock = time.monotonic
    ) -> None:
        self.output, self.bars, self._clock = output, progress, clock
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self._counts: dict[tuple[str, str], _Count] = {}
        self.now = None if progress is None else progress.add_task("starting", total=None)

    def phase(self, what: str) -> None:
        if self.bars is None or self.now is None:
            self.output.note(f"{what} ...")
        else:
            self.bars.update(self.now, description=what)

    def started(self, step: PlannedStep) -> None:
        self.output.note(f"{step.id}: {step.verb} ...")

    def progress(self, step: PlannedStep, what: str, done: int, total: int) -> None:
        name = (step.id, what)
        count = self._counts.setdefault(name, _Count(TimeLeft(self._clock)))
        count.left.heard(done, total)
        if self.bars is not None:
            self.phase(f"{step.id}: {step.verb}")
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(
                    f"{step.id}: {what}", total=total, left=count.left
                )
            self.bars.update(self.tasks[name], completed=done, total=total, visible=done < total)
        elif count.is_news(done, total, self._clock()):
            seconds = count.left.seconds
            left = f", {in_words(seconds)} left" if seconds and done < total else ""
            self.output.note(f"{step.id}: {what} {done}/{total}{left}")

    def finished(self, step: PlannedStep, result: StepResult) -> None:
        how = "unchanged, reused" if result.reused else f"done in {result.seconds:.1f} s"
        self.output.note("; ".join([f"{step.id}: {how}", *result.notes]))
        for verdict in result.verdicts:
            if not verdict.passed:
                self.output.note(f"{step.id}: GATE FAILED: {verdict.gate} (found {found(verdict)})")

    def refused(self, step: PlannedStep, why: str) -> None:
        self.output.note(f"{step.id}: REFUSED: {why}")


@dataclass
class _Count:
    """What was said last, in plain lines, of work that is counted."""

    left: TimeLeft
    tenth: int = 0
    said: float | None = None

    def is_news(self, done: int, total: int, now: float) -> bool:
        """Whether to say it: each tenth, and at least each minute something that came since."""
        tenth, last = done * 10 // max(total, 1), self.said
        self.said = now if last is None else last
        if tenth <= self.tenth and done < total and (last is None or now - last < _MINUTE):
            return False
        self.tenth, self.said = tenth, now
        return True


@contextmanager
def reporting(output: Output) -> Iterator[ProgressReporter]:
    """A reporter whose bars live while the block runs."""
    if output.quiet or not output.err.is_terminal:
        yield ProgressReporter(output, None)
        return
    with Progress(*columns(), console=output.err, transient=True) as progress:
        yield ProgressReporter(output, progress)


def columns() -> tuple[ProgressColumn, ...]:
    """What the terminal shows of a phase or of work that is counted; fits 80 characters."""
    what = TextColumn("{task.description}", markup=False)
    return SpinnerColumn(), what, BarColumn(bar_width=16), _Numbers()


class _Numbers(ProgressColumn):
    """How far work that is counted is; how long all has taken so far."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(_clock(task.elapsed))
        left = task.fields["left"].seconds if "left" in task.fields else None
        words = f", ~{in_words(left).removeprefix('about ')} left" if left else ""
        return Text(f"{task.completed:.0f}/{task.total:.0f}{words}")


def _clock(seconds: float | None) -> str:
    minutes, rest = divmod(int(seconds or 0), 60)
    return f"{minutes}:{rest:02}"
