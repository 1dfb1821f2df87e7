"""The bench step: quality against a base, size, and speed, each on its real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from llmopt.artifact import MANIFEST_DIGEST, Artifact, write_json
from llmopt.evaluate import gates, speed
from llmopt.evaluate.comparison import Comparison, Perplexity, compare, perplexity
from llmopt.evaluate.memory import peak_memory, reset_peak
from llmopt.evaluate.weights import weight_errors
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.runtimes.base import Engine
from llmopt.runtimes.choice import computing_threads, open_engine
from llmopt.runtimes.device import pick_device
from llmopt.specs import RUNTIMES
from llmopt.specs.runtimes import AUTO
from llmopt.stages import text
from llmopt.stages.base import Outcome, Work

_PROMPT = 128


def run(work: Work) -> Outcome:
    """Measure every model that the step names; write bench.json and return the verdicts."""
    with computing_threads(work.options.threads):
        return _run(work)


def _run(work: Work) -> Outcome:
    settings = work.settings
    base_name = settings["against"]
    first = work.parents[base_name or settings["from"][0]]
    windows, corpus = text.evaluation(
        settings["evaluation"], work.texts["evaluation"]["source"], first.path
    )
    runtimes = settings["runtimes"]
    base = _load(work, work.parents[base_name], runtimes[base_name]) if base_name else None
    entries: list[dict[str, Any]] = []
    speeds: dict[str, Any] = {}
    if base is not None and base_name is not None:
        entries.append(_base_entry(work.parents[base_name]) | {"runtime": runtimes[base_name]})
        if settings["speed"]:
            speeds[base_name] = _speed(base, windows, settings["new_tokens"])
    for name in settings["from"]:
        if name == base_name:
            continue
        reset_peak()
        engine = _load(work, work.parents[name], runtimes[name])
        measured = _measure(work, name, base, engine, windows)
        entry = _entry(work.parents[name], measured, first) | {"runtime": runtimes[name]}
        entries.append(entry)
        if isinstance(measured, Comparison):
            entry |= _code_errors(work.parents[name], first)
            entries[0]["perplexity"] = asdict(measured.perplexity.base)
        if settings["speed"]:
            speeds[name] = _speed(engine, windows, settings["new_tokens"])
        del engine
    if base is not None and len(entries) == 1:
        entries[0]["perplexity"] = asdict(
            perplexity(base.logits, windows, seed=settings["seed"]).perplexity
        )
    verdicts = _judge(settings["gates"], entries, work.parents)
    document = {"schema": 1, "corpus": corpus, "base": base_name, "entries": entries}
    if work.gates_of is None:
        write_json(work.folder / "bench.json", document)
    evidence = dict(next((e for e in entries if e["name"] == work.gates_of), {}))
    evidence.pop(MANIFEST_DIGEST, None)  # the verdict goes into that manifest
    return Outcome(
        format="bench", corpus=corpus, evidence=evidence, gates=verdicts, run={"speed": speeds}
    )


def _load(work: Work, artifact: Artifact, runtime: str) -> Engine:
    if not RUNTIMES[runtime].chooses_dtype:
        return open_engine(runtime, artifact.path, device=work.options.device)
    device = pick_device(work.options.device)
    # quality is that of the stored numbers: on the CPU nothing is rounded on the way
    dtype = "float32" if device == "cpu" else AUTO
    return open_engine(runtime, artifact.path, device=device, dtype=dtype)


def _measure(
    work: Work, name: str, base: Engine | None, engine: Engine, windows: Tensor
) -> Comparison | Perplexity:
    seed = work.settings["seed"]

    def progress(done: int) -> None:
        work.progress(f"windows of {name}", done, len(windows))

    if base is None:
        return perplexity(engine.logits, windows, seed=seed, progress=progress)
    return compare(base.logits, engine.logits, windows, seed=seed, progress=progress)


def _base_entry(artifact: Artifact) -> dict[str, Any]:
    return _size(artifact, artifact) | {"is_base": True}


def _entry(artifact: Artifact, measured: Comparison | Perplexity, base: Artifact) -> dict[str, Any]:
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


def _size(artifact: Artifact, base: Artifact) -> dict[str, Any]:
    """Bytes of the weight files, and bits per weight of the model as a whole."""
    contents = read_contents(artifact.path)
    seal = artifact.manifest_digest
    return {
        **({MANIFEST_DIGEST: seal} if seal else {}),
        "name": artifact.name,
        "format": artifact.manifest.get("format") or contents.runs_as or "hf",
        "digest": artifact.digest,
        "bytes": contents.nbytes,
        "size_ratio": contents.nbytes / read_contents(base.path).nbytes,
        "bits_per_weight": contents.nbytes * 8 / contents.weight_count,
    }


def _judge(
    wanted: list[str], entries: list[dict[str, Any]], parents: dict[str, Artifact]
) -> list[dict[str, Any]]:
    """Every gate held to every measured model but the base; verdicts stand in the entries too."""
    verdicts = []
    for entry in entries:
        if entry["is_base"] and len(entries) > 1:
            continue
        chosen: list[gates.Gate] = []
        for gate in wanted:
            if gate == "default":
                bits = read_contents(parents[entry["name"]].path).code_bits
                chosen += gates.default_gates(bits, fewest=entry.get("weights", {}).get("bits"))
            else:
                chosen.append(gates.parse(gate))
        found = [v.as_dict() for v in gates.check(chosen, _metrics(entry))]
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
    metrics["size"] = {"ratio": entry["size_ratio"], "bytes": entry["bytes"]}
    return metrics | {"bits_per_weight": entry["bits_per_weight"]}


def _speed(engine: Engine, windows: Tensor, new_tokens: int) -> dict[str, Any]:
    """Generation speed after a prompt from the evaluation text, and peak memory so far."""
    prompt = windows[0, : max(1, min(_PROMPT, windows.shape[1] - new_tokens))].tolist()

    def generate(ids: list[int], count: int) -> Iterator[int]:
        return engine.generate(ids, count, ignore_end=True)

    measured = speed.measure(generate, prompt, new_tokens)
    return {
        "first_token_s": measured.first_token,
        "prefill_tokens_per_s": measured.prefill,
        "decode_tokens_per_s": measured.decode,
        "token_p50_s": measured.p50,
        "token_p95_s": measured.p95,
        "peak_bytes": peak_memory().device or peak_memory().resident,
    }
