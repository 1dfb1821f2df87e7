"""From folders to results: what was measured alike stands together, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmopt.artifact import (
    RUN_RECORD,
    JsonObject,
    canonical,
    file_digest,
    file_of,
    read_manifest,
    read_object,
)
from llmopt.errors import RequestError
from llmopt.model.results import BENCH_SCHEMA, Bench, BenchEntry, Timings, parse
from llmopt.report.comparison import Comparison, Machine
from llmopt.report.manifest import Manifest
from llmopt.specs.kinds import kind_of
from llmopt.specs.metrics import Metrics

BENCH = "bench.json"


@dataclass(frozen=True)
class _Found:
    """A model as the bench step `bench` found it."""

    entry: BenchEntry
    speed: Metrics
    machine: Machine
    bench: str


def bench_document(folder: Path) -> JsonObject:
    """A bench step's results and, apart, the speeds of this run."""
    path = folder / BENCH
    if not path.is_file():
        raise RequestError(f"{folder} holds no bench results", hint="name a bench step's folder")
    listed = {file["path"]: file["sha256"] for file in read_manifest(folder).get("files", ())}
    if listed.get(BENCH) != file_digest(path):
        raise RequestError(f"{path} was changed after llmopt wrote it", hint="measure again")
    document = read_object(path)
    if document.get("schema") != BENCH_SCHEMA:
        raise RequestError(
            f"{path} was written by another llmopt (schema {document.get('schema')}, this one "
            f"reads {BENCH_SCHEMA})",
            hint="measure again",
        )
    return document | {"speed": _members(run_record(folder).get("speed"))}


def _members(value: object) -> JsonObject:
    """An object in a run record, which no digest covers; {} where something else stands there."""
    return value if isinstance(value, dict) else {}


def run_record(folder: Path) -> JsonObject:
    """What differs from run to run, of the artifact in `folder`."""
    path = folder / RUN_RECORD
    return read_object(path) if path.is_file() else {}


def manifests_of(folders: Iterable[Path]) -> dict[Path, Manifest]:
    """The manifests of those that have one; RequestError where a report could not read it."""
    found = {}
    for folder in folders:
        if document := read_manifest(folder):
            found[folder] = parse(Manifest, document, f"the manifest in {folder}")
    return found


def collect(folders: Iterable[Path]) -> list[Comparison]:
    """Results of bench folders and the artifacts they measured: one for each base and text.

    Divergences from different originals, or on different text, say nothing of each other.
    """
    manifests = manifests_of(folders)
    groups: dict[str, list[tuple[Path, Bench]]] = {}
    for folder, manifest in manifests.items():
        if kind_of(manifest.format).holds == "results":
            bench = parse(Bench, bench_document(folder), f"{folder / BENCH}")
            groups.setdefault(_comparable(bench), []).append((folder, bench))
    if not groups:
        raise RequestError("none of these folders holds bench results")
    made = {folder: m for folder, m in manifests.items() if kind_of(m.format).holds != "results"}
    return [_results(benches, made) for benches in groups.values()]


def _comparable(bench: Bench) -> str:
    """The same for results that may stand in one table."""
    base = next((entry for entry in bench.entries if entry.is_base), None)
    against = [base.digest, base.runtime] if base else None
    return canonical([bench.corpus.model_dump() if bench.corpus else None, against])


def _results(benches: list[tuple[Path, Bench]], made: dict[Path, Manifest]) -> Comparison:
    named = _named([each for folder, bench in benches for each in _measured(folder, bench)])
    artifacts = {name: _artifact(each.entry, made) for name, each in named.items()}
    entries = []
    for name, each in named.items():
        made_by = artifacts[name]
        own = made_by.own_gates if made_by else []
        known = {(v.gate, v.value) for v in own}
        more = [v for v in each.entry.gates if (v.gate, v.value) not in known]
        entries.append(each.entry.model_copy(update={"name": name, "gates": [*own, *more]}))
    bench = benches[0][1]
    base = next((entry.name for entry in entries if entry.is_base), None)
    return Comparison(
        corpus=bench.corpus,
        base=base,
        entries=tuple(entries),
        speeds={name: each.speed for name, each in named.items() if each.speed},
        manifests={name: found for name, found in artifacts.items() if found},
        machines={name: each.machine for name, each in named.items()},
    )


def _measured(folder: Path, bench: Bench) -> Iterator[_Found]:
    record, versions = run_record(folder), read_manifest(folder).get("versions", {})
    about: dict[str, object] = {key: record.get(key) for key in ("threads", "finished")}
    about |= {**_members(record.get("machine")), "versions": sorted(versions.items())}
    machine = parse(Machine, about, f"the run record in {folder}")
    for entry in bench.entries:
        found = _members(record.get("speed")).get(entry.name, {})
        speed = parse(Timings, {"metrics": found}, f"the speed of {entry.name} in {folder}")
        gates = [v.model_copy(update={"corpus": bench.corpus}) for v in entry.gates]
        entry = entry.model_copy(update={"gates": gates})
        yield _Found(entry, speed.metrics, machine, folder.name)


def _named(measured: list[_Found]) -> dict[str, _Found]:
    """Each model once, by a name of its own; what was measured twice has the gates of both."""
    once: dict[tuple[str | None, str | None, str], _Found] = {}
    for each in measured:
        key = (each.entry.digest, each.entry.runtime, each.entry.digest or each.entry.name)
        if key in once:
            first = once[key]
            more = [v for v in each.entry.gates if v not in first.entry.gates]
            entry = first.entry.model_copy(update={"gates": [*first.entry.gates, *more]})
            each = _Found(entry, first.speed or each.speed, first.machine, first.bench)
        once[key] = each
    names = [each.entry.name for each in once.values()]
    found: dict[str, _Found] = {}
    for each in sorted(once.values(), key=lambda each: not each.entry.is_base):
        name = each.entry.name
        if names.count(name) > 1:
            name = f"{name} ({each.bench})"
        number, free = 2, name
        while free in found:
            free, number = f"{name} {number}", number + 1
        found[free] = each
    return found


def _artifact(entry: BenchEntry, made: dict[Path, Manifest]) -> Manifest | None:
    """The manifest of the artifact that was measured: it has the digest, and best the name."""
    same = {folder: m for folder, m in made.items() if entry.digest and m.digest == entry.digest}
    for folder, manifest in same.items():
        resolved = folder.resolve()
        if (file_of(resolved) or resolved).name == entry.name:
            return manifest
    return next(iter(same.values()), None)
