"""run(plan): reuse what is there, resume what was begun, publish what is finished."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from llmopt import artifact, machine, preflight, soundness
from llmopt.artifact import Artifact, GateEntry, ManifestJson, ParentEntry
from llmopt.errors import LlmoptError
from llmopt.model.results import Verdict
from llmopt.planner import MODEL, Plan, PlannedStep, yields_model
from llmopt.report import card, card_metadata
from llmopt.specs import VERBS, load
from llmopt.specs.formats import PLAIN
from llmopt.step import Outcome, RunOptions, Runs, StepInput, Table, Tabulates, Work
from llmopt.verbs.shared import written

#: bytes of weights that take long enough to be looked at for somebody to wonder
_LONG_TO_READ = 10**9
#: what a disk says that takes no more: full, over quota, too large for it, mounted read-only
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class Reporter(Protocol):
    """Told how a run goes; the command line draws it."""

    def phase(self, what: str) -> None:
        """`what` is being done from now on; it may take a while, and cannot be counted."""

    def started(self, step: PlannedStep) -> None:
        """`step` begins its work."""

    def progress(self, step: PlannedStep, what: str, done: int, total: int) -> None:
        """`done` of `total` units (blocks, windows) of `what` are finished."""

    def finished(self, step: PlannedStep, result: StepResult) -> None:
        """`step` is done, or was done before."""

    def refused(self, step: PlannedStep, why: str) -> None:
        """`step` is not run, nor what is made from it: it builds on what failed its gate."""


@dataclass(frozen=True)
class StepResult:
    """`artifact` is what stands at the step's place now (for a gate: what it judged).

    `notes` say what else was done, or was left alone.
    """

    step: PlannedStep
    artifact: Artifact
    reused: bool
    seconds: float
    verdicts: Sequence[Verdict]
    notes: tuple[str, ...] = ()


@dataclass
class Ran:
    """What came of a plan: results in order, and why each step that was refused was."""

    results: list[StepResult] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def run(plan: Plan, options: RunOptions, reporter: Reporter) -> Ran:
    """Run every step that is not there already, in order; what cannot end well is refused first.

    Quality gates that fail do not stop the run: what was built is published and marked, steps
    that would build on it are refused, all others run. A step whose work fails ends the run.
    """
    reporter.phase("hashing the inputs")
    artifacts = {
        name: artifact.open_artifact(name, plan.folder_of(name))
        for step in plan.steps
        for name in step.parents
        if name not in plan.outputs
    }
    reporter.phase("checking disk and device")
    preflight.check(plan, options)
    ran = Ran()
    for number, step in enumerate(plan.steps, 1):
        reporter.phase(f"step {number} of {len(plan.steps)}: {step.id}")
        if why := _refusal(step, artifacts, ran.refused):
            ran.refused[step.id] = why
            reporter.refused(step, why)
            continue
        parents = {name: artifacts[name] for name in step.parents}
        doing = _Doing(plan, step, parents, options, reporter)
        with _disk_errors(plan.outputs[step.judges or step.id]):
            result = _run_step(doing) if step.judges is None else _judge(doing)
        artifacts[result.artifact.name] = result.artifact
        ran.results.append(result)
        reporter.finished(step, result)
    # gates have written their verdicts into what stood finished before them
    ran.results = [
        replace(result, artifact=artifacts[result.artifact.name]) for result in ran.results
    ]
    return ran


def table(plan: Plan, verb: str, options: RunOptions, reporter: Reporter) -> Table:
    """The table that the plan's first step of a verb would begin with; leaves no file."""
    step = next(step for step in plan.steps if step.verb == verb)
    parents = {name: artifact.open_artifact(name, plan.folder_of(name)) for name in step.parents}
    doing = _Doing(plan, step, parents, options, reporter)
    reporter.phase("loading torch and transformers")
    tabulates: Tabulates = load(f"{VERBS[verb].package}.run")
    from llmopt.processor import computing_threads

    doing.check_models()
    with tempfile.TemporaryDirectory() as name, computing_threads(options.threads):
        return tabulates.table(doing.work(Path(name)))


def _refusal(
    step: PlannedStep, artifacts: dict[str, Artifact], refused: dict[str, str]
) -> str | None:
    """Why a step is not run: a parent failed its gate, or was refused itself."""
    for name in step.parents:
        if name in refused:
            return f"it needs {name}, which is refused"
        # measuring what failed is how one learns why
        if VERBS[step.verb].yields != "results" and (failed := artifacts[name].failed_gates):
            return f"it builds on {name}, which failed its quality gate: {'; '.join(failed)}"
    return None


@contextlib.contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """A disk that takes no more is no bug, and what is done so far is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise LlmoptError(
            f"{error.filename or destination.absolute().parent}: {error.strerror}",
            hint="make room there: the same command resumes",
        ) from error


@dataclass(frozen=True)
class _Doing:
    """A step of a plan, and the artifacts that it reads."""

    plan: Plan
    step: PlannedStep
    parents: dict[str, Artifact]
    options: RunOptions
    reporter: Reporter

    @property
    def key(self) -> str:
        return self.step.digest_key({name: each.digest for name, each in self.parents.items()})

    def phase(self, what: str) -> None:
        self.reporter.phase(f"{self.step.id}: {what}")

    def check_models(self) -> None:
        """RequestError where a model that is read is not sound, before anything is made of it."""
        self.phase("looking at the model")

        def progress(done: int, total: int) -> None:
            if total > _LONG_TO_READ:
                self.reporter.progress(self.step, "MB looked at", done // 10**6, total // 10**6)

        for name, parent in self.parents.items():
            if self.plan.is_model(name):
                soundness.check_model(parent.path, progress)

    def work(self, folder: Path) -> Work:
        """The work, done in `folder`."""
        built, state = folder / "built", folder / "state"
        built.mkdir(exist_ok=True)
        state.mkdir(exist_ok=True)
        progress = partial(self.reporter.progress, self.step)
        return Work(
            step=self.step, artifacts=self.parents, folder=built, state=state,
            options=self.options, progress=progress,
        )  # fmt: skip

    def outcome(self, folder: Path) -> Outcome:
        """What the verb says, once the work is done in `folder`."""
        work = self.work(folder)
        self.phase("loading torch and transformers")
        verb: Runs = load(f"{VERBS[self.step.verb].package}.run")
        from llmopt.processor import computing_threads

        self.phase("reading text and model")
        with computing_threads(self.options.threads):
            return verb.run(work)


def _run_step(doing: _Doing) -> StepResult:
    plan, step, parents, key = doing.plan, doing.step, doing.parents, doing.key
    destination = plan.outputs[step.id]
    reused = artifact.complete(destination, key)
    started = time.monotonic()
    if not reused:
        doing.reporter.started(step)
        doing.check_models()
        with artifact.workspace(destination, key) as folder:
            outcome, built = doing.outcome(folder), folder / "built"
            doing.phase("publishing")
            if yields_model(step):
                written.check(step, outcome, parents[step.inputs[0].name].path, built)
            manifest, text = card.finish(_manifest(doing, outcome, built))
            record = _run_record(outcome, time.monotonic() - started)
            artifact.publish(built, destination, manifest, record, text)
    artifact.clean(destination)
    artifact.expose(destination)
    notes = (*_mended(plan, step, destination), *step.notes)
    done = artifact.open_artifact(step.id, destination)
    verdicts = () if yields_model(step) else _verdicts(done)
    return StepResult(step, done, reused, time.monotonic() - started, verdicts, notes)


def _judge(doing: _Doing) -> StepResult:
    """Measure a finished artifact and write the verdict into its manifest."""
    step, key = doing.step, doing.key
    target = doing.parents[step.judges or ""]
    started = time.monotonic()
    reused = target.manifest.get("gate", {}).get("key") == key
    if not reused:
        doing.reporter.started(step)
        doing.check_models()
        with artifact.workspace(target.path, key) as folder:
            said = _said(doing.outcome(folder))
        verdict: GateEntry = {"key": key, "evidence": said["evidence"], "corpus": said["corpus"]}
        manifest: ManifestJson = target.manifest | {"gates": said["gates"], "gate": verdict}
        artifact.write_records(target.path, *card.finish(manifest))
        target = artifact.open_artifact(target.name, target.path)
    artifact.clean(target.path)
    return StepResult(step, target, reused, time.monotonic() - started, _verdicts(target))


def _verdicts(judged: Artifact) -> list[Verdict]:
    return [Verdict.model_validate(verdict) for verdict in judged.manifest["gates"]]


def _said(outcome: Outcome) -> ManifestJson:
    """What an outcome adds to a manifest."""
    return {
        "corpus": outcome.corpus.document() if outcome.corpus else None,
        "evidence": dict(outcome.evidence),
        "gates": [verdict.document() for verdict in outcome.gates],
    }


def _mended(plan: Plan, step: PlannedStep, folder: Path) -> tuple[str, ...]:
    """Bring an artifact's records up to what the plan says now; what was done, in words.

    The verdict of a gate that is no longer asked for is lifted. A card that is not there, since
    a run was killed before it was written, is written; one that a user changed is let be.
    """
    manifest, notes = artifact.read_manifest(folder), []
    gated = any(other.judges == step.id for other in plan.steps)
    lifted = "gate" in manifest and not gated
    if lifted:
        manifest = manifest | {"gates": []}
        del manifest["gate"]
        notes.append("the verdict of its former gate is lifted")
    if "card" in manifest and not (artifact.card_is_ours(folder) or artifact.card_missing(folder)):
        notes.append(f"{artifact.CARD} was changed by hand, and is left as it is")
    if lifted or artifact.card_missing(folder):
        artifact.write_records(folder, *card.finish(manifest))
    return tuple(notes)


def _manifest(doing: _Doing, outcome: Outcome, built: Path) -> ManifestJson:
    step, parents, files = doing.step, doing.parents, artifact.describe_files(built)
    manifest: ManifestJson = {
        "schema": artifact.SCHEMA,
        "name": step.id,
        "verb": step.verb,
        "key": doing.key,
        "format": outcome.format,
        "settings": step.document(),
        "parents": [_parent(doing.plan, each, parents[each.name]) for each in step.inputs],
        "seed": doing.plan.recipe.seed,
        "versions": artifact.versions(),
        "files": files,
        "digest": artifact.digest_of(files),
        "ledger": [entry.document() for entry in outcome.ledger],
        "config_changes": [change.document() for change in outcome.config_changes],
        **_said(outcome),
    }
    return manifest | _card(manifest, parents) if yields_model(step) else manifest


def _card(manifest: ManifestJson, parents: dict[str, Artifact]) -> ManifestJson:
    """What a model's manifest keeps for its card, which is not among the files."""
    files = [file for file in manifest["files"] if file["path"] != artifact.CARD]
    entry = manifest["parents"][0]
    kept = card_metadata.describe(
        parents[entry["name"]], entry, quantized=manifest["format"] != PLAIN
    )
    return {"files": files, "digest": artifact.digest_of(files), "card": kept}


def _parent(plan: Plan, given: StepInput, parent: Artifact) -> ParentEntry:
    entry: ParentEntry = {"role": given.role, "name": given.name, "digest": parent.digest}
    if parent.manifest_digest:
        entry[artifact.MANIFEST_DIGEST] = parent.manifest_digest
    if given.name == MODEL:
        entry |= {"source": plan.model.name, "revision": plan.model.revision}
    return entry


def _run_record(outcome: Outcome, seconds: float) -> dict[str, object]:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"seconds": round(seconds, 3), "finished": finished, "machine": machine.describe()}
    return {**about, **outcome.run}
