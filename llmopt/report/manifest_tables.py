"""Tables of what the manifests record: tensors, settings, where everything came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from llmopt.model.ledger import LedgerEntry, count
from llmopt.report import numbers
from llmopt.report.comparison import Comparison, Machine
from llmopt.report.sheet import Column, Row, Sheet

WORST_TENSORS = 10


def ledger(comparison: Comparison) -> Sheet:
    ledgers = {name: m.ledger for name, m in comparison.manifests.items() if m.ledger}
    kinds = count((each.actions for found in ledgers.values() for each in found), tied=True)
    rows = []
    for name, entries in ledgers.items():
        counts = Counter(entry.words for entry in entries)
        formats = Counter(each.to for each in entries if each.quantized)
        spread = ", ".join(f"{number} to {to}" for to, number in sorted(formats.items()))
        rows.append(Row((name, *(str(counts[kind]) for kind in kinds), spread or numbers.MISSING)))
    columns = (
        Column("Model"),
        *(Column(kind.capitalize(), "number") for kind in kinds),
        Column("Formats"),
    )
    note = "Kept: as plain numbers. Tied: under another tensor's name." if rows else ""
    return Sheet("What happened to the tensors", note, columns, tuple(rows))


def largest_errors(comparison: Comparison) -> Sheet:
    rows = []
    for name, manifest in comparison.manifests.items():
        for entry in worst(manifest.ledger):
            to, error = entry.to or numbers.MISSING, numbers.percent(entry.error)
            rows.append(Row((name, entry.name, to, error, _why(entry))))
    columns = (
        Column("Model"),
        Column("Tensor", "code"),
        Column("Stored as"),
        Column("Relative error", "number"),
        Column("Why"),
    )
    note = f"The {WORST_TENSORS} tensors of each model whose values changed most."
    return Sheet("Largest errors", note, columns, tuple(rows), folded=True)


def worst(ledger: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """The entries with the largest known error, worst first."""
    known = [(entry.error, entry) for entry in ledger if entry.error]
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1].name))
    return [entry for _, entry in ranked[:WORST_TENSORS]]


def _why(entry: LedgerEntry) -> str:
    """Why a tensor is stored as it is."""
    reasons = [entry.why or "", entry.how or "", "few tokens reached it" if entry.cold else ""]
    return "; ".join(filter(None, reasons)) or "the step's settings"


def settings(comparison: Comparison) -> tuple[Sheet, ...]:
    """Those that all models share, and those by which they differ."""
    return _side_by_side(
        "Settings",
        comparison,
        {name: flatten(manifest.settings) for name, manifest in comparison.manifests.items()},
    )


def versions(comparison: Comparison) -> tuple[Sheet, ...]:
    return _side_by_side(
        "Versions", comparison, {name: m.versions for name, m in comparison.manifests.items()}
    )


def flatten(settings: Mapping[str, JsonValue], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as JSON, texts without quotes."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{key}"] = words
    return flat


def _side_by_side(
    title: str, comparison: Comparison, values: Mapping[str, Mapping[str, str]]
) -> tuple[Sheet, ...]:
    """A row a key: one column for what all models agree on, else a column a model."""
    shown = {e.name: values[e.name] for e in comparison.entries if values.get(e.name)}
    keys = sorted({key for column in shown.values() for key in column})
    found = {key: [c.get(key, numbers.MISSING) for c in shown.values()] for key in keys}
    alike = [key for key in keys if len(set(found[key])) == 1]
    many = len(shown) > 1
    differ = [key for key in keys if key not in alike] if many else []
    sheets = []
    if differ:
        columns = (Column("Key", "code"), *(Column(name) for name in shown))
        rows = tuple(Row((key, *found[key])) for key in differ)
        sheets.append(Sheet(f"{title} that differ", "", columns, rows, folded=True))
    value = "All models" if many else "".join(shown)
    rows = tuple(Row((key, found[key][0])) for key in (alike if many else keys))
    columns = (Column("Key", "code"), Column(value))
    return (*sheets, Sheet(title, "", columns, rows, folded=True))


def machine(comparison: Comparison) -> Sheet:
    """What the measurements ran on: one column, or one for each of several."""
    found: dict[Machine, list[str]] = {}
    for name, each in comparison.machines.items():
        key = next((k for k in found if k == each), each)
        found.setdefault(key, []).append(name)
    columns = [Column("What")]
    columns += [Column("Measured on" if len(found) == 1 else ", ".join(n)) for n in found.values()]
    labels = {label: None for each in found for label in _about(each)}
    rows = [
        Row((label, *(_about(each).get(label, numbers.MISSING) for each in found)))
        for label in labels
    ]
    return Sheet("Machine", "", tuple(columns), tuple(rows))


def _about(machine: Machine) -> dict[str, str]:
    memory = machine.memory_bytes
    found = {
        "Processor": machine.processor,
        "Cores": machine.cores,
        "Threads used": machine.threads,
        "Memory": f"{memory / 1e9:.1f} GB" if memory else None,
        "GPUs": ", ".join(machine.gpus),
        "System": " ".join(filter(None, (machine.system, machine.architecture))),
        "Finished": machine.finished,
        "Versions": ", ".join(f"{name} {each}" for name, each in machine.versions),
    }
    return {label: str(value) for label, value in found.items() if value}


def provenance(comparison: Comparison) -> Sheet:
    rows = []
    if comparison.corpus:
        rows.append(Row(("Evaluation text", comparison.corpus.name, comparison.corpus.sha256)))
    for entry in comparison.entries:
        manifest = comparison.manifests.get(entry.name)
        digest = entry.digest or (manifest.digest if manifest else None)
        rows.append(Row((entry.name, "this model", digest or numbers.MISSING)))
        seal = manifest.manifest_digest if manifest else entry.manifest_digest
        if seal:
            rows.append(Row((entry.name, "its manifest", seal)))
        if manifest is None:
            continue
        for parent in manifest.parents:
            how = "made from" if parent.role in ("", "model") else f"{parent.role}:"
            made_from = f"{how} {parent.name}"
            rows.append(Row((entry.name, made_from, parent.digest or numbers.MISSING)))
            if parent.manifest_digest:
                rows.append(Row((entry.name, f"manifest of {parent.name}", parent.manifest_digest)))
        if manifest.corpus:
            calibrated = f"calibrated on {manifest.corpus.name}"
            rows.append(Row((entry.name, calibrated, manifest.corpus.sha256)))
        if manifest.seed is not None:
            rows.append(Row((entry.name, "seed", str(manifest.seed))))
    columns = (Column("Of"), Column("What"), Column("Digest (SHA-256)", "code"))
    return Sheet("Provenance", "", columns, tuple(rows), folded=True, whole=True)
