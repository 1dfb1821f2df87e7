"""The members of a manifest as types; `shape` checks that a file on disk has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from llmopt.artifact.documents import JsonObject


class FileEntry(TypedDict):
    """A file of an artifact: its path in the folder, its size, and its SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str


class ParentEntry(TypedDict):
    """An input: what it was for, its name in the recipe, its contents' and its manifest's digest.

    `source` and `revision` are those of the recipe's model.
    """

    role: str
    name: str
    digest: str
    manifest_digest: NotRequired[str]
    source: NotRequired[str | None]
    revision: NotRequired[str | None]


class GateEntry(TypedDict):
    """What the gate was held to: its step's key, what it measured, and on which text."""

    key: str
    evidence: Mapping[str, object]
    corpus: JsonObject | None


class OriginalEntry(TypedDict):
    """The first ancestor that is known."""

    source: str
    digest: str
    revision: str | None


class CardEntry(TypedDict):
    """What the card is made from: its front matter and the original; then its SHA-256 and maker."""

    metadata: dict[str, str | list[str]]
    original: OriginalEntry
    sha256: NotRequired[str]
    rendered_by: NotRequired[str]


class ManifestJson(TypedDict, total=False):
    """llmopt.json. Without a member it is that of a foreign model, of which nothing is known."""

    schema: int
    name: str
    verb: str
    key: str
    format: str
    settings: JsonObject
    parents: list[ParentEntry]
    corpus: JsonObject | None
    seed: int
    versions: dict[str, str]
    files: list[FileEntry]
    digest: str
    manifest_digest: str
    ledger: list[JsonObject]
    config_changes: list[JsonObject]
    evidence: Mapping[str, object]
    gates: list[JsonObject]
    gate: GateEntry
    card: CardEntry
