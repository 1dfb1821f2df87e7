"""What `llmopt doctor --measure` found of this machine, among the user's caches. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from llmopt import artifact, machine, threads
from llmopt.caches import cache_folder
from llmopt.specs import WORK

#: of what is measured, and how; a change means to measure anew
_VERSION = 1
#: machines and numbers of threads that are remembered
_MOST = 20


@dataclass(frozen=True)
class Host:
    """What measurements hold for: another one is slower or faster."""

    processor: str
    cores: int
    threads: int
    torch: str

    @property
    def key(self) -> str:
        """One text for all of it, and for how it is measured."""
        return json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)


@dataclass(frozen=True)
class Speeds:
    """seconds: a unit, for each kind of work in specs.WORK. measured: the day, as ISO writes it."""

    seconds: Mapping[str, float]
    measured: str


def here(count: int | None = None) -> Host:
    """This machine with so many threads; None: as many as a step would compute with."""
    return Host(
        processor=machine.processor(),
        cores=machine.cores(),
        threads=count or threads.usual(),
        torch=artifact.versions().get("torch", "none"),
    )


def speeds(of: Host) -> Speeds | None:
    """What was measured; None where that was never done on this very machine."""
    entry = _all().get(of.key)
    if not isinstance(entry, dict):
        return None
    seconds, measured = entry.get("seconds"), entry.get("measured")
    if not isinstance(seconds, dict) or not isinstance(measured, str):
        return None
    # a file that others wrote: whatever is no duration counts as not measured
    fine = {
        kind: float(value)
        for kind, value in seconds.items()
        if isinstance(value, int | float) and math.isfinite(value) and value >= 0
    }
    return Speeds(fine, measured) if WORK.keys() <= fine.keys() else None


def keep(of: Host, found: Speeds) -> None:
    """Remember what was measured."""
    known = {key: entry for key, entry in _all().items() if key != of.key}
    kept = dict(list(known.items())[-_MOST + 1 :]) | {of.key: asdict(found)}
    artifact.write_cache(place(), kept)


def place() -> Path:
    """Where it is kept."""
    return cache_folder() / "speeds.json"


def _all() -> dict[str, object]:
    try:
        found = json.loads(place().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
