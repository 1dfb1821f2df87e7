"""What is checked once a plan is about to run, so that no work ends in a refusal."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmopt import artifact, machine
from llmopt.artifact import ManifestJson
from llmopt.errors import RequestError
from llmopt.planner import Plan, PlannedStep, State, states
from llmopt.report.manifest_tables import flatten
from llmopt.step import RunOptions, Text

#: settings that a refusal names
_TOLD = 4


def check(plan: Plan, options: RunOptions) -> None:
    """RequestError where a step that is to run could not be published, or has no room or device.

    The digests of the plan's models must be known (`artifact.open_artifact`).
    """
    found = states(plan)
    todo = [step for step in plan.steps if found[step.id].what != "done"]
    for step in todo:
        if step.judges is None:
            _check_output(plan, step, found[step.id], options)
    _check_memory(todo)
    _check_disk(plan, todo, found)
    _check_texts(plan, todo)
    if todo:
        from llmopt.runtimes.device import pick_device

        pick_device(options.device)


def _check_output(plan: Plan, step: PlannedStep, state: State, options: RunOptions) -> None:
    destination = plan.outputs[step.id]
    manifest = artifact.read_manifest(destination)
    ours = plan.named and step.asked_by is None and not options.overwrite
    if manifest and ours and not _same(plan, step, state, manifest):
        raise RequestError(
            f"{destination} holds a finished artifact that was made in another way: "
            f"{_difference(step, manifest)}",
            hint="--overwrite replaces it, or choose another -o",
        )
    artifact.check_replaceable(destination)


def _same(plan: Plan, step: PlannedStep, state: State, manifest: ManifestJson) -> bool:
    """Whether the artifact is of this step, and only damaged or prepared anew."""
    if state.key is not None:
        return bool(manifest["key"] == state.key)
    outside = {
        name: artifact.known_digest(plan.folder_of(name))
        for name in step.parents
        if name not in plan.outputs
    }
    made = {parent["name"]: parent["digest"] for parent in manifest["parents"]}
    alike = all(made.get(name) == digest for name, digest in outside.items())
    return alike and (manifest["verb"], manifest["settings"]) == (step.verb, step.document())


def _difference(step: PlannedStep, manifest: ManifestJson) -> str:
    """How an artifact was made, and what of that the step would do in another way."""
    source = manifest["parents"][0].get("source") or manifest["parents"][0]["name"]
    made = f"{manifest['verb']} of {source}"
    if manifest["verb"] != step.verb:
        return made
    there, here = flatten(manifest["settings"]), flatten(step.document())
    names = [
        name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)
    ]
    told = [f"{name} {there.get(name, 'unset')} (now {here.get(name, 'unset')})" for name in names]
    if not told:
        return f"{made}, from other contents or by another version of llmopt"
    more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    return f"{made} with {', '.join(told[:_TOLD])}{more}"


def _check_memory(todo: Iterable[PlannedStep]) -> None:
    """RequestError where a step would hold more than there is; plans have chosen what is least."""
    there = machine.memory()
    for step in todo:
        if step.footprint.memory_bytes > there:
            raise RequestError(
                f"{step.id} needs {_gigabytes(step.footprint.memory_bytes)} of memory, and this "
                f"machine has {_gigabytes(there)}",
                hint=f"--max-memory {there >> 20}MiB says what would fit",
            )


def _check_disk(plan: Plan, todo: Iterable[PlannedStep], found: dict[str, State]) -> None:
    """RequestError naming the first file system that the steps would fill.

    Each step needs its work and its result at once; what is there of a killed run is not needed
    again, and what a result replaces is free after it.
    """
    kept: dict[int, int] = defaultdict(int)
    peak: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for step in todo:
        output = plan.outputs[step.judges or step.id]
        place = next(folder for folder in output.absolute().parents if folder.is_dir())
        device = place.stat().st_dev
        places.setdefault(device, place)
        key = found[step.id].key
        begun = _size(artifact.work_folder(output, key)) if key else 0
        needed = max(step.footprint.disk_bytes - begun, 0)
        peak[device] = max(peak[device], kept[device] + needed)
        if step.judges is None:
            kept[device] += sum(change.bytes for change in step.changes) - _size(output)
    for device, place in places.items():
        free = shutil.disk_usage(place).free
        if peak[device] > free:
            raise RequestError(
                f"{place} has {_gigabytes(free)} free, and the steps to run need "
                f"{_gigabytes(peak[device])} there",
                hint="free some, or choose another -o",
            )


def _check_texts(plan: Plan, todo: Sequence[PlannedStep]) -> None:
    """RequestError where text that a later step measures on is too short, or is not the model's."""
    seen: list[Text] = []
    for step in todo[1:]:  # the first looks at its own
        if step.evaluation is None or step.evaluation in seen:
            continue
        seen.append(step.evaluation)
        from llmopt.verbs.shared import texts

        try:
            texts.evaluation(step.evaluation, plan.model.folder)
        except RequestError as error:
            if step.judges is None:
                raise
            ways = [*([error.hint] if error.hint else []), "take no gate (--gate none)"]
            raise RequestError(error.message, hint=", or ".join(ways)) from None


def _size(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(os.lstat(path).st_size for _, path in artifact.entries(folder))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
