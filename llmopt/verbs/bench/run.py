"""The bench step: quality against a base, size, and speed, each on its real engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from llmopt.artifact import MANIFEST_DIGEST, Artifact, write_json
from llmopt.evaluate import gates
from llmopt.evaluate.alone import Job, stopwatch
from llmopt.evaluate.comparison import Comparison, Perplexity, compare, perplexity
from llmopt.evaluate.weights import weight_errors
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.headers import read_headers
from llmopt.formats.quantization import read_contents
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import open_engine
from llmopt.runtimes.device import pick_device
from llmopt.specs import RUNTIMES
from llmopt.specs.runtimes import AUTO
from llmopt.step import Outcome, Work
from llmopt.verbs.shared import texts as text

_PROMPT = 128


def run(work: Work) -> Outcome:
    """Measure every model that the step names; write bench.json and return the verdicts."""
    settings = work.settings
    base_name = _base(work)
    first = work.artifacts[base_name or _measured(work)[0]]
    assert work.step.evaluation is not None
    windows, corpus = text.evaluation(work.step.evaluation, first.path)
    entries = _quality(work, windows)
    # by now no model is left in this process
    speeds = _speeds(work, [e["name"] for e in entries], windows) if settings["speed"] else {}
    verdicts = _judge(settings["gates"], entries, work.artifacts)
    document = {"schema": 1, "corpus": corpus, "base": base_name, "entries": entries}
    if work.step.judges is None:
        write_json(work.folder / "bench.json", document)
    evidence = dict(next((e for e in entries if e["name"] == work.step.judges), {}))
    evidence.pop(MANIFEST_DIGEST, None)  # the verdict goes into that manifest
    run = {"speed": speeds, "threads": torch.get_num_threads()}
    return Outcome(format="bench", corpus=corpus, evidence=evidence, gates=verdicts, run=run)


def _base(work: Work) -> str | None:
    """The name of what models are compared with."""
    return next((each.name for each in work.step.inputs if each.role == "base"), None)


def _measured(work: Work) -> list[str]:
    """The names of what is measured."""
    return [each.name for each in work.step.inputs if each.role == "model"]


def _quality(work: Work, windows: Tensor) -> list[dict[str, Any]]:
    """An entry for each model, the base's first; base and model run side by side."""
    runtimes = work.settings["runtimes"]
    base_name = _base(work)
    against = work.artifacts[base_name] if base_name else None
    base = _load(work, against, runtimes[base_name]) if against else None
    entries: list[dict[str, Any]] = []
    if against is not None:
        entries.append(_base_entry(against) | {"runtime": runtimes[base_name]})
    for name in _measured(work):
        if name == base_name:
            continue
        engine = _load(work, work.artifacts[name], runtimes[name])
        measured = _measure(work, name, base, engine, windows)
        entry = _entry(work.artifacts[name], measured, against) | {"runtime": runtimes[name]}
        entries.append(entry)
        if against is not None and isinstance(measured, Comparison):
            entry |= _code_errors(work.artifacts[name], against)
            entries[0]["perplexity"] = asdict(measured.perplexity.base)
        del engine
    if base is not None and len(entries) == 1:
        entries[0]["perplexity"] = asdict(
            perplexity(base.logits, windows, seed=work.step.seed).perplexity
        )
    return entries


def _load(work: Work, artifact: Artifact, runtime: str) -> Engine:
    return open_engine(runtime, artifact.path, **_opening(work, runtime))


def _opening(work: Work, runtime: str) -> dict[str, str]:
    """The device and dtype that a runtime opens models with."""
    if not RUNTIMES[runtime].chooses_dtype:
        return {"device": work.options.device, "dtype": AUTO}
    device = pick_device(work.options.device)
    # quality is that of the stored numbers: on the CPU nothing is rounded on the way
    return {"device": device, "dtype": "float32" if device == "cpu" else AUTO}


def _measure(
    work: Work, name: str, base: Engine | None, engine: Engine, windows: Tensor
) -> Comparison | Perplexity:
    seed = work.step.seed

    def progress(done: int) -> None:
        work.progress(f"windows of {name}", done, len(windows))

    progress(0)
    if base is None:
        return perplexity(engine.logits, windows, seed=seed, progress=progress)
    return compare(base.logits, engine.logits, windows, seed=seed, progress=progress)


def _base_entry(artifact: Artifact) -> dict[str, Any]:
    return _size(artifact, artifact) | {"is_base": True}


def _entry(
    artifact: Artifact, measured: Comparison | Perplexity, base: Artifact | None
) -> dict[str, Any]:
    """One row of bench.json; see report.results for the meaning of its members."""
    entry = _size(artifact, base) | {"is_base": False}
    if isinstance(measured, Perplexity):
        return entry | {"perplexity": asdict(measured.perplexity)}
    kl, flips = measured.kl, measured.flips
    return entry | {
        "perplexity": asdict(measured.perplexity.candidate),
        "perplexity_ratio": asdict(measured.perplexity.ratio),
        "kl": {
            "mean": asdict(kl.mean), "median": kl.median, "p99": kl.p99, "p99_9": kl.p999,
            "max": kl.max,
        },
        "agreement": asdict(measured.agreement),
        "flips": {"lost": flips.lost, "gained": flips.won, "changed": flips.both_wrong},
    }  # fmt: skip


def _code_errors(artifact: Artifact, base: Artifact) -> dict[str, Any]:
    """How far codes are from the weights they were chosen for; {} where `base` is not those.

    A transform before rounding has moved scales between the weights of the base.
    """
    if artifact.manifest.get("settings", {}).get("transform", "none") != "none":
        return {}
    if base.digest not in [parent["digest"] for parent in artifact.manifest.get("parents", ())]:
        return {}
    found = weight_errors(Checkpoint.open(base.path), Checkpoint.open(artifact.path))
    if found is None:
        return {}
    return {"weights": {"offset": found.offset, "gain": found.gain, "bits": found.fewest_bits}}


def _size(artifact: Artifact, base: Artifact | None) -> dict[str, Any]:
    """Bytes of the weight files, of the base's, and for each weight of the model as a whole."""
    contents, size = read_contents(artifact.path), read_headers(artifact.path).weight_bytes
    whole = read_headers(base.path).weight_bytes if base else None
    seal = artifact.manifest_digest
    return {
        **({MANIFEST_DIGEST: seal} if seal else {}),
        "name": artifact.name,
        "format": artifact.manifest.get("format") or contents.stored_as,
        "digest": artifact.digest,
        "bytes": size,
        "size_ratio": size / whole if whole else None,
        "bits_per_weight": size * 8 / contents.weight_count,
    }


def _judge(
    wanted: list[str], entries: list[dict[str, Any]], parents: Mapping[str, Artifact]
) -> list[dict[str, Any]]:
    """Every gate held to every measured model but the base; verdicts stand in the entries too."""
    verdicts = []
    for entry in entries:
        if entry["is_base"] and len(entries) > 1:
            continue
        metrics, found = _metrics(entry), list[dict[str, Any]]()
        for gate in wanted:
            if gate == "default":
                bits = read_contents(parents[entry["name"]].path).code_bits
                sound = gates.default_gates(bits, fewest=entry.get("weights", {}).get("bits"))
                found += [v.as_dict() | {"default": True} for v in gates.check(sound, metrics)]
            else:
                found += [v.as_dict() for v in gates.check([gates.parse(gate)], metrics)]
        entry["gates"] = found
        verdicts += [verdict | {"model": entry["name"]} for verdict in found]
    return verdicts


def _metrics(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry under the names that gates use."""
    metrics: dict[str, Any] = {
        key: entry[key] for key in ("kl", "agreement", "flips", "weights") if key in entry
    }
    metrics["perplexity"] = dict(entry.get("perplexity", {}))
    if "perplexity_ratio" in entry:
        metrics["perplexity"]["ratio"] = entry["perplexity_ratio"]
    metrics["size"] = {"bytes": entry["bytes"]}
    if entry["size_ratio"] is not None:
        metrics["size"]["ratio"] = entry["size_ratio"]
    return metrics | {"bits_per_weight": entry["bits_per_weight"]}


def _speeds(work: Work, names: list[str], windows: Tensor) -> dict[str, Any]:
    """Speed and memory of each model by itself, after a prompt from the evaluation text."""
    new_tokens = work.settings["new_tokens"]
    prompt = windows[0, : max(1, min(_PROMPT, windows.shape[1] - new_tokens))].tolist()
    found: dict[str, Any] = {}
    with stopwatch() as watch:
        for done, name in enumerate(names):
            runtime, folder = work.settings["runtimes"][name], str(work.artifacts[name].path)
            work.progress("models timed", done, len(names))
            found[name] = watch.measure(
                Job(
                    runtime=runtime,
                    folder=folder,
                    **_opening(work, runtime),
                    threads=torch.get_num_threads(),
                    prompt=prompt,
                    new_tokens=new_tokens,
                )
            )
        work.progress("models timed", len(names), len(names))
    return found
