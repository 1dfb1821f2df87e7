"""The model card: README.md of an artifact, written from its manifest and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import yaml

from llmopt import __version__
from llmopt.artifact import finite
from llmopt.model import ledger as ledgers
from llmopt.report import numbers
from llmopt.report.card_metadata import CARRIED, licence_files
from llmopt.report.manifest_tables import flatten
from llmopt.report.markdown import escape
from llmopt.report.quality import class_of
from llmopt.report.results import BenchEntry, CorpusName
from llmopt.specs.base import counted
from llmopt.specs.loaders import loaders
from llmopt.specs.metrics import METRICS

#: members of the front matter, in this order whatever the manifest's
_ORDER = (*CARRIED, "base_model", "base_model_relation")
_NOT_MEASURED = "not measured"
_SHOWN = ("kl.mean", "kl.p99", "agreement", "perplexity", "perplexity.ratio")
_ABOUT_KL = (
    "kl is the divergence of the next-token distribution from the original's, in nats; in "
    "brackets are 95% intervals from a bootstrap over windows."
)


def finish(manifest: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The manifest with the digest of its card, and the card; None where it is to have none.

    The digest lets another version, whose cards may read otherwise, still verify this one.
    """
    if "card" not in manifest:
        return manifest, None
    manifest = finite(manifest)
    text = render(manifest)
    kept = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "rendered_by": __version__}
    return manifest | {"card": manifest["card"] | kept}, text


def render(manifest: dict[str, Any]) -> str:
    """The card of a manifest that has a `card`: the same text for the same manifest."""
    sections = (
        _front_matter(manifest),
        f"# {_title(manifest)}",
        _lineage(manifest),
        _warning(manifest),
        _quality(manifest),
        _settings(manifest),
        _usage(manifest),
        _verification(manifest),
        _licence(manifest),
    )
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(manifest: dict[str, Any]) -> str:
    metadata = dict(manifest["card"]["metadata"])
    metadata.setdefault("library_name", "transformers")
    metadata.setdefault("pipeline_tag", "text-generation")
    tags = metadata.get("tags", [])
    carried = [tags] if isinstance(tags, str) else tags
    metadata["tags"] = list(dict.fromkeys([*carried, "llmopt", manifest["format"]]))
    ordered = {key: metadata[key] for key in _ORDER if key in metadata}
    text = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"


def _title(manifest: dict[str, Any]) -> str:
    settings = manifest["settings"]
    name = str(manifest["card"]["origin"]["source"]).rpartition("/")[2]
    group = settings.get("group_size")
    parts = [settings.get("grid"), f"group {group}" if group and group > 0 else None]
    return escape(f"{name}: {', '.join([*filter(None, parts), manifest['format']])}")


def _lineage(manifest: dict[str, Any]) -> str:
    """Which model this is, through which others, and what made it."""
    origin, parents = manifest["card"]["origin"], manifest["parents"]
    text = f"Made with llmopt {manifest['versions'].get('llmopt', '')}".rstrip()
    text += f" (`{manifest['verb']}`) from "
    parent = parents[0]
    if parent["digest"] != origin["digest"]:
        text += f"{_ancestor(parent)}, which descends from "
    return f"{text}{_ancestor(origin)}."


def _ancestor(entry: dict[str, Any]) -> str:
    name = entry.get("source") or entry["name"]
    if entry.get("revision"):
        return f"[{escape(name)}](https://huggingface.co/{name}) at `{entry['revision']}`"
    return f"{escape(name)} (`{entry['digest']}`)"


def _warning(manifest: dict[str, Any]) -> str:
    failed = [verdict["gate"] for verdict in manifest["gates"] if not verdict["passed"]]
    if not failed:
        return ""
    return f"**This model failed its quality gate: {escape('; '.join(failed))}.**"


def _quality(manifest: dict[str, Any]) -> str:
    gate = manifest.get("gate", {})
    evidence = gate.get("evidence")
    entry = BenchEntry.model_validate(evidence) if evidence else None
    rows = [*_measured(entry), *_size(manifest, entry)]
    if entry is None:
        note = "Quality was not measured: the gate was off. `llmopt bench` measures it."
    else:
        note = f"{_corpus('Measured against the original on', gate.get('corpus'))}{_ABOUT_KL}"
    if certificate := manifest["evidence"].get("certificate"):
        note = f"{_certified(certificate, manifest['parents'][0])}\n\n{note}"
    corpus = CorpusName.model_validate(gate["corpus"]) if gate.get("corpus") else None
    amount = f" on {corpus.amount}" if corpus and corpus.amount else ""
    verdicts = [
        f"- gate `{v['gate']}`: {'passed' if v['passed'] else 'FAILED'} "
        f"(found {numbers.short(v['value'])}{amount})"
        for v in manifest["gates"]
    ]
    table = _table(("measure", "value"), rows)
    return "\n".join(["## Quality", "", note, "", *table, "", *verdicts])


def _certified(certificate: dict[str, Any], parent: dict[str, Any]) -> str:
    """What a conversion says of its values."""
    name = escape(parent.get("source") or parent["name"])
    text = f"{counted(certificate['exact'], 'tensor')} hold exactly the values that {name} has"
    if not certificate["rounded"]:
        return f"All {text}."
    largest = numbers.percent(certificate["largest_error"])
    return f"{text}; {certificate['rounded']} were rounded, by at most {largest} of their norm."


def _measured(entry: BenchEntry | None) -> Iterable[tuple[str, str]]:
    """What the gate's evidence says; the rows are the same where there is none."""
    yield "Class of quality", (class_of(entry) if entry else None) or _NOT_MEASURED
    for metric in (METRICS[name] for name in _SHOWN):
        found = entry.metrics.get(metric.name) if entry else None
        text = numbers.measured(metric, found)
        _, comma, unit = numbers.heading(metric).partition(", ")
        said = f"`{metric.name}`{comma}{unit}: {metric.summary}"
        yield said, _NOT_MEASURED if text == numbers.MISSING else text


def _size(manifest: dict[str, Any], entry: BenchEntry | None) -> Iterable[tuple[str, str]]:
    """Bytes of the weight files, in all and a weight, the tensors left alone included."""
    size = numbers.weight_bytes({f["path"]: f["bytes"] for f in manifest["files"]})
    ratio = entry.value("size.ratio") if entry else None
    share = f" ({numbers.percent(ratio)} of the original)" if ratio else ""
    yield "Size of the weights", f"{numbers.megabytes(size)} MB{share}"
    there = [item for item in manifest["ledger"] if item["action"] != "left out"]
    if count := sum(math.prod(item["shape"]) for item in there if item.get("shape")):
        yield "Bits per weight, all tensors", numbers.short(size * 8 / count)


def _corpus(what: str, corpus: dict[str, Any] | None) -> str:
    if not corpus:
        return ""
    amount = f"{corpus['windows']:,} windows of {corpus['length']:,} tokens of {corpus['name']}"
    return f"{what} {escape(amount)} (SHA-256 `{corpus['sha256']}`). "


def _settings(manifest: dict[str, Any]) -> str:
    settings = {k: v for k, v in manifest["settings"].items() if k != "calibration"}
    rows = [(f"`{key}`", escape(value)) for key, value in sorted(flatten(settings).items())]
    calibration = _corpus("Calibrated on", manifest["corpus"]) or "No calibration text was used."
    ledger = manifest["ledger"]
    grids = Counter(entry["to"] for entry in ledger if entry.get("to"))
    fates = ledgers.in_words(ledgers.count(entry["action"] for entry in ledger))
    kinds = ", ".join(f"{count} to {to}" for to, count in sorted(grids.items()))
    what = f"Tensors: {escape(fates)}" + (f"; {escape(kinds)}" if kinds else "") + "."
    note = f"{calibration.strip()} {what if ledger else ''}".strip()
    return "\n".join(["## Settings", "", note, "", *_table(("key", "value"), rows)])


def _table(heading: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [" | ".join(heading), ":--- | :---", *(" | ".join(row) for row in rows)]
    return [f"| {line} |" for line in lines]


def _usage(manifest: dict[str, Any]) -> str:
    """How each program that is known to load the artifact does."""
    facts = manifest["evidence"].get("loading")
    lines = ["## Use", "", "`PATH` is this folder, or the repository's id on the hub.", ""]
    if manifest["evidence"].get("no_tokenizer"):
        return (
            "## Use\n\nNo tokenizer came with the model. Put the one that belongs to it into this "
            "folder: until then nothing can generate text with it, or serve it."
        )
    for spec, needed in loaders(manifest["format"], facts):
        installed = f" (`pip install {needed}`)" if needed else ""
        lines += [f"**{spec.title}**{installed}", ""]
        lines += [f"```{spec.language}", spec.code.rstrip(), "```", ""]
    lines += ["**llmopt**", "", "```shell", 'llmopt generate PATH --prompt "Once"', "```"]
    if facts and facts["apart"]:
        lines += [
            "",
            f"Engines that make one module of several linears cannot load it: {apart(facts)}.",
        ]
    return "\n".join(lines)


def apart(facts: dict[str, Any]) -> str:
    """What engines such as vLLM make one module of though its parts have different settings."""
    first, *more = facts["apart"]
    others = f" and {len(more)} more" if more else ""
    return f"the parts of `{first}`{others} differ in their settings"


def _verification(manifest: dict[str, Any]) -> str:
    what = "`llmopt.json` says how each tensor came about. This checks all files against it:"
    command = "```shell\nllmopt verify PATH\n```"
    return f"## Verify\n\n{what}\n\n{command}\n\nContents: `{manifest['digest']}`"


def _licence(manifest: dict[str, Any]) -> str:
    metadata = manifest["card"]["metadata"]
    name = metadata.get("license_name") or metadata.get("license")
    files = licence_files([file["path"] for file in manifest["files"]])
    text = f"{escape(_joined(name))}, as the original." if name else "The original states none."
    if files:
        text += f" See {', '.join(f'[{escape(file)}]({file})' for file in files)}."
    return f"## Licence\n\n{text}"


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
