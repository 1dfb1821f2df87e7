"""The bench step: what the probes find of each model, and what its gates say to that."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmopt.artifact import Artifact, write_json
from llmopt.evaluate import codes, gates
from llmopt.evaluate.alone import Job, stopwatch
from llmopt.evaluate.gates import Gate, Judge
from llmopt.evaluate.probe import Probe, Subject
from llmopt.formats.quantization import read_contents
from llmopt.model.results import Bench, BenchEntry, Parent
from llmopt.specs import load
from llmopt.specs.metrics import PROBES, Measurement, Metrics
from llmopt.step import MODEL, Outcome, Work
from llmopt.verbs.bench.opening import Engines, in_lockstep, opening
from llmopt.verbs.bench.plan import BASE
from llmopt.verbs.bench.settings import Benchmark
from llmopt.verbs.shared import texts as text

_PROMPT = 128


def run(work: Work) -> Outcome:
    """Measure every model that the step names; write bench.json and return the verdicts."""
    assert work.step.evaluation is not None
    base = _base(work)
    windows, corpus = text.evaluation(work.step.evaluation, (base or work.input()).path)
    entries = _entries(work, windows)
    # by now no model is left in this process
    timed = work.asked(Benchmark).speed
    speeds = _speeds(work, [entry.name for entry in entries], windows) if timed else {}
    if work.step.judges is None:
        against = base.name if base else None
        results = Bench(corpus=corpus, base=against, entries=entries)
        write_json(work.folder / "bench.json", results.document())
    judged = (entry for entry in entries if entry.name == work.step.judges)
    return Outcome(
        format="bench",
        corpus=corpus,
        evidence=next((entry.evidence() for entry in judged), {}),
        gates=[
            verdict.model_copy(update={"model": entry.name})
            for entry in entries
            for verdict in entry.gates
        ],
        run={"speed": speeds, "threads": torch.get_num_threads()},
    )


def _entries(work: Work, windows: Tensor) -> list[BenchEntry]:
    """An entry for each model; the base's, where there are others, is first and has no gates."""
    base = _base(work)
    engines = Engines(work, base)
    found, of_base = list[BenchEntry](), dict[str, Measurement]()
    others = [model for model in work.inputs(MODEL) if base is None or model.name != base.name]
    together = None
    if not work.step.arrangement.whole_models:
        together = in_lockstep(work, base, others, windows, engines).measure
    for model in others or filter(None, [base]):
        subject = Subject(
            model=model, base=base, open_engine=engines.open, windows=windows,
            seed=work.step.seed, together=together,
        )  # fmt: skip
        entry, more = _measured(work, subject)
        found.append(entry)
        of_base |= more
    if base is not None and not found[0].is_base:
        itself = Subject(model=base, base=base, open_engine=engines.open, windows=windows, seed=0)
        size = next(iter(_probe("size").measure(itself)))
        found.insert(0, _entry(work, itself, {**size.metrics, **of_base}))
    return found


def _base(work: Work) -> Artifact | None:
    return next(iter(work.inputs(BASE)), None)


def _measured(work: Work, subject: Subject) -> tuple[BenchEntry, Metrics]:
    """What the probes find of one model, judged as they do; and what they find of its base."""
    name, judge = subject.model.name, Judge(_gates(work.asked(Benchmark).gates, subject))
    metrics, of_base = dict[str, Measurement](), dict[str, Measurement]()
    for spec in PROBES.values():
        if spec.alone:
            continue
        for reading in _probe(spec.id).measure(subject):
            work.progress(f"{spec.counts} of {name}", reading.done, reading.total)
            judge.hear(reading)
            if reading.final:
                metrics |= reading.metrics
                of_base |= reading.base_metrics
    entry = _entry(work, subject, metrics)
    return entry.model_copy(update={"gates": judge.verdicts()}), of_base


def _probe(name: str) -> Probe:
    probe: Probe = load(PROBES[name].module)
    return probe


def _gates(wanted: list[str], subject: Subject) -> Iterator[Gate]:
    """The gates in words; the default ones depend on the bits, and on what can be measured."""
    for each in wanted:
        if each != "default":
            yield gates.parse(each)
            continue
        contents = read_contents(subject.model.path)
        bits = [tensor.layout.bits for tensor in contents.tensors.values() if tensor.layout]
        held = subject.base is not None and codes.stand_for(subject.model, subject.base)
        fewest = min(bits) if bits and held else None
        yield from gates.default_gates(contents.code_bits, fewest=fewest)


def _entry(work: Work, subject: Subject, metrics: Metrics) -> BenchEntry:
    model, base = subject.model, subject.base
    stored = model.manifest.get("format") or read_contents(model.path).stored_as
    return BenchEntry(
        name=model.name,
        format=stored,
        runtime=work.asked(Benchmark).runtimes[model.name],
        digest=model.digest,
        manifest_digest=model.manifest_digest,
        is_base=model is base,
        against=None if base in (None, model) else Parent(name=base.name, digest=base.digest),
        metrics=dict(metrics),
    )


def _speeds(work: Work, names: list[str], windows: Tensor) -> dict[str, Metrics]:
    """Speed and memory of each model by itself, after a prompt from the evaluation text."""
    new_tokens = work.asked(Benchmark).new_tokens
    prompt = windows[0, : max(1, min(_PROMPT, windows.shape[1] - new_tokens))].tolist()
    found = dict[str, Metrics]()
    with stopwatch() as watch:
        for done, name in enumerate(names):
            runtime = work.asked(Benchmark).runtimes[name]
            device, dtype = opening(work, runtime)
            work.progress("models timed", done, len(names))
            job = Job(
                runtime=runtime,
                folder=str(work.artifacts[name].path),
                device=device,
                dtype=dtype,
                threads=torch.get_num_threads(),
                prompt=prompt,
                new_tokens=new_tokens,
            )
            found[name] = watch.measure(job)
        work.progress("models timed", len(names), len(names))
    return found
