"""What a run would do with each step of a plan now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmopt import artifact
from llmopt.planner.made import Plan


@dataclass(frozen=True)
class State:
    """`key` is the step's, where the digests of all its parents are known."""

    what: Literal["done", "to run", "unknown"]
    key: str | None = None


def states(plan: Plan) -> dict[str, State]:
    """What a run would do with each step now: reuse it, run it, or find out later.

    A foreign model that was never hashed here has no digest yet, and no weights are read to
    make one: then what stands on disk is checked when the plan runs.
    """
    digests: dict[str, str | None] = {}
    found: dict[str, State] = {}
    for step in plan.steps:
        for name in step.parents:
            if name not in digests:  # not a step: the model, or an artifact from outside
                digests[name] = artifact.known_digest(plan.folder_of(name))
        known = {name: digest for name in step.parents if (digest := digests[name])}
        folder = plan.outputs[step.judges or step.id]
        manifest = artifact.read_manifest(folder) if folder.is_dir() else {}
        if len(known) < len(step.parents):
            missing = [name for name in step.parents if name not in known]
            unhashed = any(name not in found or found[name].what == "unknown" for name in missing)
            found[step.id] = State("unknown" if manifest and unhashed else "to run")
            digests.setdefault(step.id, None)
            continue
        key = step.digest_key(known)
        if step.judges:
            done = manifest.get("gate", {}).get("key") == key
        else:
            done = artifact.complete(folder, key)
            digests[step.id] = manifest["digest"] if done else None
        found[step.id] = State("done" if done else "to run", key)
    return found
