"""How long the steps of a plan would take. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmopt import artifact
from llmopt.forecast.kept import Speeds
from llmopt.forecast.times import seconds
from llmopt.model.effort import Effort
from llmopt.planner import Plan, State

#: bytes of memory that pass by for each byte of a model that is looked at for soundness
_LOOKED_AT = 3


def of_steps(plan: Plan, states: Mapping[str, State], speeds: Speeds) -> dict[str, float]:
    """Seconds for each step, done or not; the first that is to run begins the run.

    That loads the libraries, and hashes and looks at a model that was not seen before.
    """
    found = {step.id: seconds(step.effort, speeds.seconds) for step in plan.steps}
    first = next((step for step in plan.steps if states[step.id].what != "done"), None)
    if first is not None:
        found[first.id] += seconds(Effort({"start": 1.0}) + _looking(plan), speeds.seconds)
    return found


def _looking(plan: Plan) -> Effort:
    """What is read of models from outside before any step, once for each change of theirs."""
    folders = {plan.model.folder, *plan.externals.values()}
    size = sum(_size(folder) for folder in folders if artifact.known_digest(folder) is None)
    return Effort({"read": size, "hashed": size, "moved": _LOOKED_AT * size})


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in artifact.content_files(folder))
