"""The manifest, llmopt.json: what it must say, and the digest that it carries of itself."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from llmopt.artifact.documents import canonical, finite, read_object, write_json, write_text
from llmopt.artifact.files import CARD, MANIFEST, file_digest, sha256_of
from llmopt.artifact.members import ManifestJson
from llmopt.artifact.shape import fault
from llmopt.errors import RequestError

SCHEMA = 3
#: the member that holds the digest of all others
MANIFEST_DIGEST: Final = "manifest_digest"


@dataclass(frozen=True)
class Artifact:
    """A folder on disk that a step can read. `manifest` is empty for a foreign model."""

    name: str
    path: Path
    digest: str
    manifest: ManifestJson

    @property
    def manifest_digest(self) -> str | None:
        """What identifies its manifest, verdicts and all; None for a foreign model."""
        return self.manifest.get(MANIFEST_DIGEST)

    @property
    def failed_gates(self) -> list[str]:
        """The gates that it did not pass."""
        return [str(v["gate"]) for v in self.manifest.get("gates", ()) if not v["passed"]]


def step_key(
    verb: str, version: int, settings: Mapping[str, object], inputs: list[list[str]]
) -> str:
    """What makes two runs of a step the same: its verb and version, settings and inputs.

    `inputs` are [role, name, digest].
    """
    document = {"verb": verb, "version": version, "settings": settings, "inputs": inputs}
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def sealed(manifest: ManifestJson) -> ManifestJson:
    """The manifest as it is written: with the digest of all its other members."""
    plain: ManifestJson = json.loads(json.dumps(finite(manifest)))
    return plain | {MANIFEST_DIGEST: seal_of(plain)}


def seal_of(manifest: ManifestJson) -> str:
    """The digest of a manifest: SHA-256 of its canonical JSON without that member."""
    return sha256_of({name: each for name, each in manifest.items() if name != MANIFEST_DIGEST})


def read_manifest(folder: Path) -> ManifestJson:
    """The manifest in `folder`, or {} where there is none.

    RequestError for one that cannot be read, lacks something, or was changed by hand.
    """
    manifest = parse_manifest(folder)
    if manifest and manifest[MANIFEST_DIGEST] != seal_of(manifest):
        raise RequestError(
            f"{folder / MANIFEST} was changed after llmopt wrote it: its {MANIFEST_DIGEST} "
            "is that of another",
            hint="bring the file back, or move the folder away and run the command that made it",
        )
    return manifest


def parse_manifest(folder: Path) -> ManifestJson:
    """The same, whether or not it is as it was written; only `verify` looks at such a one."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    found = read_object(path)
    schema = found.get("schema")
    if isinstance(schema, int) and 0 < schema < SCHEMA:
        raise RequestError(
            f"{path} was written by an earlier llmopt (schema {schema}, this one reads {SCHEMA})",
            hint="move the folder away, and make the artifact again with the command that made it",
        )
    if type(schema) is not int or schema != SCHEMA:
        raise RequestError(
            f"{path} is no manifest that this llmopt reads: schema {schema!r}, not {SCHEMA}"
        )
    if wrong := fault(found):
        raise RequestError(f"{path} is not a manifest of llmopt's: {wrong}")
    return cast("ManifestJson", found)


def write_records(folder: Path, manifest: ManifestJson, card: str | None) -> None:
    """Write a manifest and then the card that it implies, None for no card.

    The former card goes first: if the run is killed in between there is none, and `card_missing`
    tells that it is to be written again. One that was changed by hand is let be.
    """
    if card is not None and os.path.lexists(folder / CARD):
        if card_is_ours(folder):
            (folder / CARD).unlink()
        else:
            card = None
    write_json(folder / MANIFEST, sealed(manifest))
    if card is not None:
        write_text(folder / CARD, card)


def card_is_ours(folder: Path) -> bool:
    """Whether the card in `folder` is the one that was written with its manifest."""
    kept = read_manifest(folder).get("card")
    path = folder / CARD
    return kept is not None and path.is_file() and file_digest(path) == str(kept["sha256"])


def card_missing(folder: Path) -> bool:
    """Whether the manifest implies a card, and there is none."""
    return "card" in read_manifest(folder) and not os.path.lexists(folder / CARD)


def versions() -> dict[str, str]:
    """Versions of llmopt and of the libraries that results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("llmopt", "torch", "transformers", "tokenizers", "safetensors", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
