"""Small artifacts, whole manifests and all, for tests that run no stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt import artifact
from llmopt.report import card

DIGEST = "sha256:" + "0" * 64
FILES = {"model.safetensors": "weights", "config.json": "{}"}


def manifest_of(files: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
    """A manifest with all that one must have."""
    return {
        "schema": artifact.SCHEMA, "name": "w4", "verb": "quantize", "format": "gptq", "key": "k",
        "files": files, "digest": artifact.digest_of(files),
        "settings": {"method": "rtn", "grid": "int4", "group_size": 128}, "corpus": None,
        "ledger": [], "config_changes": [], "gates": [], "evidence": {}, "seed": 0,
        "versions": {"llmopt": "0"},
        "parents": [
            {"role": "model", "name": "model", "source": "demo", "revision": None,
             "digest": DIGEST},
        ],
    } | members  # fmt: skip


def with_card(**members: Any) -> dict[str, Any]:
    """Members of the manifest of a model, which has a card."""
    original = {"source": "a/b", "revision": "abc", "digest": DIGEST}
    return {"card": {"metadata": {"license": "mit"}, "original": original}} | members


def published(folder: Path, files: dict[str, str] = FILES, **members: Any) -> Path:
    """Build an artifact beside `folder` and publish it there."""
    built = folder.with_name(f".{folder.name}.built")
    built.mkdir(parents=True)
    for name, text in files.items():
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).write_text(text)
    manifest = manifest_of(artifact.describe_files(built), **members)
    manifest, text = card.finish(manifest)
    artifact.publish(built, folder, manifest, {"seconds": 1.0}, text)
    return folder
