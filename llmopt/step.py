"""What every stage gets and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmopt.artifact import Artifact
from llmopt.model.change import TensorFate
from llmopt.model.ledger import LedgerEntry


@dataclass(frozen=True)
class RunOptions:
    """What may differ from run to run without changing what is asked for."""

    device: str = "auto"
    #: of the processor; None: as many as torch takes
    threads: int | None = None
    #: replace a finished artifact that -o names
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step: settings with nothing left to decide, parents to read, a folder to build in.

    `state` is a folder of the stage's own that outlives a kill. `progress` is told
    (what, done, total). `gates_of` names the parent that is judged, where that is the step.
    `texts` are the recipe's calibration and evaluation data with their places on this machine.
    """

    settings: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    fates: tuple[TensorFate, ...]
    gates_of: str | None
    parents: dict[str, Artifact]
    folder: Path
    state: Path
    options: RunOptions
    progress: Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What a stage says of what it built. `run` holds all that differs from run to run."""

    format: str
    ledger: list[LedgerEntry] = field(default_factory=list)
    corpus: dict[str, Any] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    gates: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """A verb's module `run`."""

    def run(self, work: Work) -> Outcome:
        """Do one step; never calls another stage."""
