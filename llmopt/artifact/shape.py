"""What a manifest must look like, so that whoever reads one finds what it looks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
)

from llmopt.artifact.documents import JsonObject
from llmopt.model.ledger import LedgerEntry

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Text = Annotated[str, StringConstraints(min_length=1)]


class _Part(BaseModel):
    """Members that are not named here may be there, too."""

    model_config = ConfigDict(strict=True, extra="allow")


def _inside(path: str) -> str:
    """A path that leads out of the folder, or to a hidden file, is none of an artifact's."""
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not any(part.startswith(".") for part in parts)
    if not plain or path.startswith("/") or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not the path of a file in the artifact")
    return path


class _File(_Part):
    path: Annotated[_Text, AfterValidator(_inside)]
    bytes: NonNegativeInt
    sha256: _Sha256


def _once(files: list[_File]) -> list[_File]:
    names = [file.path for file in files]
    if len(set(names)) < len(names):
        raise ValueError("a file is listed twice")
    return files


class _Parent(_Part):
    role: _Text
    name: _Text
    digest: _Digest
    manifest_digest: _Digest | None = None
    source: str | None = None
    revision: str | None = None


class _Corpus(_Part):
    name: str
    sha256: str
    windows: int
    length: int


@dataclass(frozen=True, kw_only=True)
class _LedgerEntry(LedgerEntry):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")


class _ConfigChange(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    key: Annotated[list[str], Field(min_length=1)]
    value: JsonValue = None
    removed: bool = False
    why: str


class _Verdict(_Part):
    gate: str
    model: str
    value: float | None
    passed: bool


class _Interval(_Part):
    value: float | None
    low: float | None
    high: float | None


class _Measured(_Part):
    name: str
    metrics: dict[str, int | float | _Interval | None]


class _Gate(_Part):
    key: str
    evidence: _Measured
    corpus: _Corpus | None


class _Certificate(_Part):
    exact: int
    rounded: int
    largest_error: float


class _Allocation(_Part):
    predicted_kl: float | None
    bits_per_weight: float
    sensitivity: list[JsonObject]


class _Loading(_Part):
    family: str
    layouts: list[JsonObject]
    head: bool
    plain: bool
    apart: list[str]


class _Evidence(_Part):
    certificate: _Certificate | None = None
    tokenizer: list[str] | None = None
    allocation: _Allocation | None = None
    left_out: dict[str, str] | None = None
    loading: _Loading | None = None


class _Original(_Part):
    source: str
    digest: _Digest
    revision: str | None = None


class _Card(_Part):
    metadata: dict[str, str | list[str]]
    original: _Original
    sha256: _Sha256
    rendered_by: str


class _Settings(_Part):
    method: str | None = None
    grid: str | None = None
    group_size: int | None = None


class _Manifest(_Part):
    name: _Text
    verb: _Text
    key: _Text
    format: _Text
    settings: _Settings
    parents: Annotated[list[_Parent], Field(min_length=1)]
    corpus: _Corpus | None
    seed: int
    versions: dict[str, str]
    files: Annotated[list[_File], AfterValidator(_once)]
    digest: _Digest
    manifest_digest: _Digest
    ledger: list[_LedgerEntry]
    config_changes: list[_ConfigChange]
    evidence: _Evidence
    gates: list[_Verdict]
    gate: _Gate | None = None
    card: _Card | None = None


def fault(manifest: JsonObject) -> str | None:
    """What is wrong with the members of a manifest, in a few words; None if nothing is."""
    try:
        _Manifest.model_validate_json(json.dumps(manifest))  # a list is a tuple in JSON
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    # members that may be absent, but not null
    null = (name for name in ("gate", "card") if name in manifest and manifest[name] is None)
    return next((f"{name}: null" for name in null), None)
