"""What a model folder says about itself, from headers and its manifest. No torch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from llmopt.artifact import ManifestJson, read_manifest
from llmopt.errors import RequestError
from llmopt.formats.headers import read_headers
from llmopt.formats.quantization import (
    STATIC_ACTIVATIONS,
    contents_of,
    quantized_layers,
    read_quantization,
)
from llmopt.formats.tensor_header import Headers
from llmopt.model import ledger
from llmopt.model.results import parse
from llmopt.report import numbers
from llmopt.report.manifest import Manifest
from llmopt.sources import ModelSource
from llmopt.specs.families import family_of, naming_in
from llmopt.verbs.shared.changes import in_linears, linear_names

#: tensors in no linear that are named, the largest first
_NAMED = 6


def describe(source: ModelSource) -> dict[str, Any]:
    """{"name", "summary": {...}, "tensors": [...], "manifest": {...} or {}}."""
    headers, manifest = read_headers(source.folder), read_manifest(source.folder)
    return {
        "name": source.name,
        "summary": _summary(headers, manifest, source),
        "tensors": manifest.get("ledger") or _tensors(headers),
        "manifest": {key: value for key, value in manifest.items() if key != "ledger"},
    }


def _summary(headers: Headers, manifest: ManifestJson, source: ModelSource) -> dict[str, object]:
    family = family_of(headers.config)
    config = family.language_config(headers.config)
    size = numbers.megabytes(headers.weight_bytes)
    dtypes = Counter(header.dtype for header in headers.tensors.values())
    summary: dict[str, object] = {
        "family": family.id,
        "blocks": naming_in(headers.config, headers.tensors).block_count,
        "hidden size": config.get("hidden_size") or config.get("n_embd"),
        "vocabulary": config.get("vocab_size"),
        "stored": ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items())),
        "weights": f"{size} MB",
    }
    summary |= _linears(headers) | _quantization(headers, source)
    if source.revision:
        summary["revision"] = source.revision
    return summary | _provenance(manifest)


def _linears(headers: Headers) -> dict[str, str]:
    """How much of the blocks is in linears, and what else there is."""
    try:
        contents = contents_of(headers)
    except RequestError:
        return {}  # `quantized` says why
    share, others = in_linears(contents)
    if not share:
        return {}
    rest = ", ".join(others[:_NAMED])
    beside = f"; besides: {rest}{', ...' if len(others) > _NAMED else ''}" if rest else ""
    count = len(linear_names(contents.naming, head=False))
    return {"linears": f"{count}, {share:.1%} of the weights of blocks{beside}"}


def _quantization(headers: Headers, source: ModelSource) -> dict[str, str]:
    """How the linears are stored, or why that cannot be read."""
    try:
        quantization = read_quantization(source.folder, headers.config)
        layers = quantized_layers(headers.tensors, quantization)
    except RequestError as error:
        return {"quantized": error.message}
    if quantization is None:
        return {}
    labels = Counter(layout.label for layout in layers.values()).most_common()
    found = "; ".join(f"{count} {label}" for label, count in labels)
    static = [name for name in headers.tensors if name.endswith(STATIC_ACTIVATIONS)]
    unused = {"not used": f"{len(static)} scales of static activations"} if static else {}
    return {"quantized": f"{quantization.format}: {found}", **unused}


def _provenance(manifest: ManifestJson) -> dict[str, str]:
    if not manifest:
        return {}
    parents = ", ".join(str(p.get("source") or p["name"]) for p in manifest["parents"])
    found = {"made by": f"llmopt {manifest['versions'].get('llmopt')}, {manifest['verb']}"}
    found |= {"from": parents, "digest": manifest["digest"]}
    made = parse(Manifest, manifest, "the manifest")
    if counts := ledger.count(entry.actions for entry in made.ledger):
        found["tensors"] = ledger.in_words(counts)
    s = manifest["settings"]
    if s.keys() >= {"method", "grid", "group_size"}:
        found["method"] = f"{s['method']} {s['grid']} group {s['group_size']}"
    if corpus := manifest["corpus"]:
        found["calibration"] = "{name} ({windows} × {length} tokens)".format(**corpus)
    if made.gates:
        passed = all(verdict.passed for verdict in made.gates)
        text = made.gate.corpus if made.gate else None
        amount = f" on {text.amount}" if text and text.amount else ""
        found["gate"] = ("passed" if passed else "FAILED") + amount
    return found


def _tensors(headers: Headers) -> list[dict[str, object]]:
    return [
        {
            "name": name,
            "dtype": header.dtype,
            "shape": list(header.shape),
            "bytes": header.nbytes,
            "weights": math.prod(header.shape),
        }
        for name, header in headers.tensors.items()
    ]
