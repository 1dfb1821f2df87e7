"""The model card: README.md of an artifact, written from its manifest and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import yaml

from llmopt import __version__
from llmopt.artifact import CardEntry, ManifestJson, finite
from llmopt.model import ledger as ledgers
from llmopt.model.results import BenchEntry, CorpusName, Parent
from llmopt.report import numbers
from llmopt.report.card_metadata import CARRIED, FrontMatter, licence_files
from llmopt.report.manifest import CardFacts, Certificate, Manifest, Original
from llmopt.report.manifest_tables import flatten
from llmopt.report.markdown import escape
from llmopt.report.quality import class_of
from llmopt.specs.base import counted
from llmopt.specs.loaders import loaders
from llmopt.specs.metrics import METRICS

#: members of the front matter, in this order whatever the manifest's
_ORDER = (*CARRIED, "base_model", "base_model_relation")
_NOT_MEASURED = "not measured"
_SHOWN = ("kl.mean", "kl.p99", "agreement", "perplexity", "perplexity.ratio")
_ABOUT_KL = (
    "kl is the divergence of the next-token distribution from that one's, in nats; in "
    "brackets are 95% intervals from a bootstrap over windows."
)


def finish(manifest: ManifestJson) -> tuple[ManifestJson, str | None]:
    """The manifest with the digest of its card, and the card; None where it is to have none.

    The digest lets another version, whose cards may read otherwise, still verify this one.
    """
    if "card" not in manifest:
        return manifest, None
    manifest = finite(manifest)
    text = render(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    card: CardEntry = {**manifest["card"], "sha256": digest, "rendered_by": __version__}
    return {**manifest, "card": card}, text


def render(manifest: Mapping[str, object]) -> str:
    """The card of a manifest that has a `card`: the same text for the same manifest."""
    made = Manifest.model_validate(manifest)
    assert made.card is not None
    sections = (
        _front_matter(made, made.card),
        f"# {_title(made, made.card)}",
        _lineage(made, made.card),
        _warning(made),
        _quality(made),
        _settings(made),
        _usage(made),
        _verification(made),
        _licence(made, made.card),
    )
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _front_matter(made: Manifest, card: CardFacts) -> str:
    metadata: FrontMatter = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **card.metadata,
    }
    tags = metadata.get("tags", [])
    carried = [tags] if isinstance(tags, str) else tags
    metadata["tags"] = list(dict.fromkeys([*carried, "llmopt", made.format]))
    ordered = {key: metadata[key] for key in _ORDER if key in metadata}
    text = yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"


def _title(made: Manifest, card: CardFacts) -> str:
    name = card.original.source.rpartition("/")[2]
    grid, group = made.settings.get("grid"), made.settings.get("group_size")
    parts = [
        *([str(grid)] if grid else []),
        *([f"group {group}"] if isinstance(group, int) and group > 0 else []),
        made.format,
    ]
    return escape(f"{name}: {', '.join(parts)}")


def _lineage(made: Manifest, card: CardFacts) -> str:
    """Which model this is, through which others, and what made it."""
    text = f"Made with llmopt {made.versions.get('llmopt', '')}".rstrip()
    text += f" (`{made.verb}`) from "
    parent = made.parents[0]
    if parent.digest != card.original.digest:
        text += f"{_ancestor(parent, parent.source or parent.name)}, which descends from "
    return f"{text}{_ancestor(card.original, card.original.source)}."


def _ancestor(ancestor: Parent | Original, name: str) -> str:
    if ancestor.revision:
        return f"[{escape(name)}](https://huggingface.co/{name}) at `{ancestor.revision}`"
    return f"{escape(name)} (`{ancestor.digest}`)"


def _warning(made: Manifest) -> str:
    failed = [verdict.gate for verdict in made.gates if not verdict.passed]
    if not failed:
        return ""
    return f"**This model failed its quality gate: {escape('; '.join(failed))}.**"


def _quality(made: Manifest) -> str:
    entry, corpus = (made.gate.evidence, made.gate.corpus) if made.gate else (None, None)
    if entry is None:
        note = "Quality was not measured: the gate was off. `llmopt bench` measures it."
    else:
        note = _corpus(f"Measured against {escape(made.compared_with)} on", corpus) + _ABOUT_KL
    if made.evidence.certificate:
        note = f"{_certified(made.evidence.certificate, made.parents[0])}\n\n{note}"
    rows = [*_measured(entry), *_size(made, entry)]
    verdicts = [
        f"- gate `{verdict.gate}`: {'passed' if verdict.passed else 'FAILED'} "
        f"(found {numbers.short(verdict.value)}{verdict.on})"
        for verdict in made.own_gates
    ]
    table = _table(("measure", "value"), rows)
    return "\n".join(["## Quality", "", note, "", *table, "", *verdicts])


def _certified(certificate: Certificate, parent: Parent) -> str:
    """What a conversion says of its values."""
    name = escape(parent.source or parent.name)
    text = f"{counted(certificate.exact, 'tensor')} hold exactly the values that {name} has"
    if not certificate.rounded:
        return f"All {text}."
    largest = numbers.percent(certificate.largest_error)
    return f"{text}; {certificate.rounded} were rounded, by at most {largest} of their norm."


def _measured(entry: BenchEntry | None) -> Iterable[tuple[str, str]]:
    """What the gate's evidence says; the rows are the same where there is none."""
    yield "Class of quality", (class_of(entry) if entry else None) or _NOT_MEASURED
    for metric in (METRICS[name] for name in _SHOWN):
        found = entry.metrics.get(metric.name) if entry else None
        text = numbers.measured(metric, found)
        _, comma, unit = numbers.heading(metric).partition(", ")
        said = f"`{metric.name}`{comma}{unit}: {metric.summary}"
        yield said, _NOT_MEASURED if text == numbers.MISSING else text


def _size(made: Manifest, entry: BenchEntry | None) -> Iterable[tuple[str, str]]:
    """Bytes of the weight files, in all and a weight, the tensors left alone included."""
    size = numbers.weight_bytes({file.path: file.bytes for file in made.files})
    ratio = entry.value("size.ratio") if entry else None
    share = f" ({numbers.percent(ratio)} of {escape(made.compared_with)})" if ratio else ""
    yield "Size of the weights", f"{numbers.megabytes(size)} MB{share}"
    shapes = [entry.shape for entry in made.ledger if entry.written]
    if count := sum(math.prod(shape) for shape in shapes):
        yield "Bits per weight, all tensors", numbers.short(size * 8 / count)


def _corpus(what: str, corpus: CorpusName | None) -> str:
    if corpus is None:
        return ""
    return f"{what} {corpus.amount} of {escape(corpus.name)} (SHA-256 `{corpus.sha256}`). "


def _settings(made: Manifest) -> str:
    settings = {key: value for key, value in made.settings.items() if key != "calibration"}
    rows = [(f"`{key}`", escape(value)) for key, value in sorted(flatten(settings).items())]
    calibration = _corpus("Calibrated on", made.corpus) or "No calibration text was used."
    grids = Counter(entry.to for entry in made.ledger if entry.to)
    counts = ledgers.in_words(ledgers.count(entry.actions for entry in made.ledger))
    kinds = ", ".join(f"{count} to {to}" for to, count in sorted(grids.items()))
    what = f"Tensors: {escape(counts)}" + (f"; {escape(kinds)}" if kinds else "") + "."
    note = f"{calibration.strip()} {what if made.ledger else ''}".strip()
    return "\n".join(["## Settings", "", note, "", *_table(("key", "value"), rows)])


def _table(heading: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [" | ".join(heading), ":--- | :---", *(" | ".join(row) for row in rows)]
    return [f"| {line} |" for line in lines]


def _usage(made: Manifest) -> str:
    """How each program that is known to load the artifact does."""
    facts = made.evidence.loading
    lines = ["## Use", "", "`PATH` is this folder, or the repository's id on the hub.", ""]
    if made.evidence.no_tokenizer:
        return (
            "## Use\n\nNo tokenizer came with the model. Put the one that belongs to it into this "
            "folder: until then nothing can generate text with it, or serve it."
        )
    for spec, needed in loaders(made.format, facts):
        installed = f" (`pip install {needed}`)" if needed else ""
        lines += [f"**{spec.title}**{installed}", ""]
        lines += [f"```{spec.language}", spec.code.rstrip(), "```", ""]
    lines += ["**llmopt**", "", "```shell", 'llmopt generate PATH --prompt "Once"', "```"]
    if said := apart(facts):
        lines += ["", f"Engines that make one module of several linears cannot load it: {said}."]
    return "\n".join(lines)


def apart(facts: Mapping[str, object] | None) -> str:
    """What engines such as vLLM make one module of though its parts have different settings."""
    modules = facts.get("apart") if facts else None
    if not isinstance(modules, list) or not modules:
        return ""
    others = f" and {len(modules) - 1} more" if modules[1:] else ""
    return f"the parts of `{modules[0]}`{others} differ in their settings"


def _verification(made: Manifest) -> str:
    what = "`llmopt.json` says how each tensor came about. This checks all files against it:"
    command = "```shell\nllmopt verify PATH\n```"
    return f"## Verify\n\n{what}\n\n{command}\n\nContents: `{made.digest}`"


def _licence(made: Manifest, card: CardFacts) -> str:
    name = card.metadata.get("license_name") or card.metadata.get("license")
    files = licence_files([file.path for file in made.files])
    text = f"{escape(_joined(name))}, as the original." if name else "The original states none."
    if files:
        text += f" See {', '.join(f'[{escape(file)}]({file})' for file in files)}."
    return f"## Licence\n\n{text}"


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
