"""The files of a folder and their digests."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmopt.artifact.documents import canonical
from llmopt.artifact.members import FileEntry
from llmopt.errors import RequestError

MANIFEST = "llmopt.json"
RUN_RECORD = "llmopt.run.json"
CARD = "README.md"
_CHUNK = 1 << 22
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: ends of the names of files that are opened to load a model or its tokenizer
_LOADED = re.compile(
    r"(\.(json|jinja|model|safetensors|gguf|tiktoken)|(^|/)(vocab|merges)\.txt)$", re.IGNORECASE
)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """All that stands in a folder, hidden or not, as (path within it, path): files, links, and
    folders with nothing in them. A link to a folder is one entry, and not walked through."""
    for parent, folders, files in os.walk(folder, onerror=_unreadable):
        place = Path(parent)
        links = [name for name in folders if (place / name).is_symlink()]
        for name in [*files, *links]:
            yield (place / name).relative_to(folder).as_posix(), place / name
        if not files and not folders and place != folder:
            yield place.relative_to(folder).as_posix(), place


def _unreadable(error: OSError) -> None:
    raise error


def hidden(name: str) -> bool:
    """Whether a path within a folder is hidden, or in something hidden."""
    return any(part.startswith(".") for part in name.split("/"))


def content_files(folder: Path) -> list[Path]:
    """The files an artifact's digest covers, sorted: all but hidden ones and our two records."""
    own = {MANIFEST, RUN_RECORD}
    return sorted(
        path
        for name, path in entries(folder)
        if path.name not in own and not hidden(name) and path.is_file()
    )


def check_regular(folder: Path) -> None:
    """RequestError where something in a model's folder that loaders open is no file.

    Opening a pipe waits for ever, and a link may lead nowhere, or to itself.
    """
    for name, path in entries(folder):
        if hidden(name) or not _LOADED.search(name) or path.is_file() or path.is_dir():
            continue
        try:
            kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode), "something else")
        except OSError as error:
            if not path.is_symlink():
                continue  # it is gone by now
            kind = f"a link that leads nowhere ({error.strerror})"
        raise RequestError(f"{path} is {kind}, not a file")


def describe_files(folder: Path) -> list[FileEntry]:
    """[{path, bytes, sha256}] of every content file."""
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in content_files(folder)
    ]


def digest_of(files: list[FileEntry]) -> str:
    """One digest over a list from describe_files."""
    return sha256_of(files)


def sha256_of(value: Any) -> str:
    """The digest of a JSON document, however it is laid out."""
    return "sha256:" + hashlib.sha256(canonical(value).encode()).hexdigest()
