"""Digests of folders: an artifact's stands in its manifest, a foreign model's is remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from llmopt.artifact.documents import canonical, write_json
from llmopt.artifact.files import content_files, describe_files, digest_of
from llmopt.artifact.manifest import Artifact, read_manifest
from llmopt.caches import cache_folder


def known_digest(folder: Path) -> str | None:
    """The digest of `folder` where it is known without reading the files, else None."""
    manifest = read_manifest(folder)
    if manifest:
        return str(manifest["digest"])
    entry = _digest_cache().get(fingerprint(folder))
    return str(entry) if entry else None


def open_artifact(name: str, folder: Path) -> Artifact:
    """The artifact or foreign model in `folder`; hashes a foreign model once per change."""
    digest = known_digest(folder)
    if digest is None:
        digest = digest_of(describe_files(folder))
        cache = _digest_cache()
        cache[fingerprint(folder)] = digest
        write_cache(_cache_file(), cache)
    return Artifact(name, folder, digest, read_manifest(folder))


def write_cache(path: Path, value: Any) -> None:
    """Write JSON among the caches; a home that cannot be written only costs the next run time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


def _cache_file() -> Path:
    return cache_folder() / "digests.json"


def _digest_cache() -> dict[str, str]:
    try:
        cache = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cache if isinstance(cache, dict) else {}


def fingerprint(folder: Path) -> str:
    """Changes whenever a file is added, removed, resized or rewritten."""
    rows = []
    for path in content_files(folder):
        stat = path.stat()
        rows.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return hashlib.sha256(canonical(rows).encode()).hexdigest()
