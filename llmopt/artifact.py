"""Artifacts: what a step leaves behind, and how it comes to stand there whole or not at all.

An artifact is a folder that its engine wants, plus llmopt.json (the manifest: deterministic, in
no part of it a path or a time), README.md (the card, which the manifest implies; its own digest is
there) and llmopt.run.json (times, speeds, machine; enters no digest).
A folder with a manifest is complete: the manifest is written last, and a rename publishes it.

Where a model is one file and the user names it (`-o model.gguf`), the artifact is the folder
`model.gguf.llmopt` beside it, and model.gguf is a hard link to the file in there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.errors import LlmoptError, RequestError

MANIFEST = "llmopt.json"
RUN_RECORD = "llmopt.run.json"
CARD = "README.md"
#: what artifacts call the file of a model that is one file, and of an importance matrix
ONE_FILE, IMATRIX = "model.gguf", "imatrix.gguf"
#: ends of file names that stand for an artifact, which is a folder, under -o
_FILES = (".gguf", ".dat")
SCHEMA = 1
_FOLDER_OF_FILE = ".llmopt"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Artifact:
    """A folder on disk that a step can read. `manifest` is empty for a foreign model."""

    name: str
    path: Path
    digest: str
    manifest: dict[str, Any]

    @property
    def gate_failed(self) -> bool:
        return any(not verdict["passed"] for verdict in self.manifest.get("gates", ()))


def canonical(value: Any) -> str:
    """JSON with one spelling only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def finite(value: Any) -> Any:
    """The same document with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds either the old or the new document, never half of one."""
    text = json.dumps(finite(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _write_text(path, text + "\n")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def step_key(verb: str, version: int, settings: dict[str, Any], parents: dict[str, str]) -> str:
    """What makes two runs of a step the same: its verb and version, settings and inputs."""
    document = {"verb": verb, "version": version, "settings": settings, "parents": parents}
    return hashlib.sha256(canonical(document).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_files(folder: Path) -> list[Path]:
    """The files an artifact's digest covers, sorted: all but hidden ones and our two records."""
    own = {MANIFEST, RUN_RECORD}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in own
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """[{path, bytes, sha256}] of every content file."""
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in content_files(folder)
    ]


def digest_of(files: list[dict[str, Any]]) -> str:
    """One digest over a list from describe_files."""
    return "sha256:" + hashlib.sha256(canonical(files).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`, or {} where there is none. RequestError if it is unreadable."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ValueError(f"schema {manifest.get('schema')!r}, this llmopt reads {SCHEMA}")
    except (ValueError, AttributeError) as error:
        raise RequestError(f"{path} is not a manifest that can be read: {error}") from None
    return manifest


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


def cache_folder() -> Path:
    """Where what can be made again is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmopt"


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
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def fingerprint(folder: Path) -> str:
    """Changes whenever a file is added, removed, resized or rewritten."""
    rows = []
    for path in content_files(folder):
        stat = path.stat()
        rows.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return hashlib.sha256(canonical(rows).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of llmopt and of the libraries that results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("llmopt", "torch", "transformers", "tokenizers", "safetensors", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def complete(folder: Path, key: str) -> bool:
    """Whether `folder` holds the finished artifact of the step with this key."""
    try:
        manifest = read_manifest(folder)
    except RequestError:
        return False
    return manifest.get("key") == key and all(
        (folder / file["path"]).is_file()
        and (folder / file["path"]).stat().st_size == file["bytes"]
        for file in manifest["files"]
    )


def verify(folder: Path) -> list[str]:
    """What is wrong with the artifact in `folder`: [] if every byte is as the manifest says."""
    manifest = read_manifest(folder)
    if not manifest:
        raise RequestError(f"{folder} has no {MANIFEST}: only llmopt's artifacts can be verified")
    expected = {file["path"]: file for file in manifest["files"]}
    found = {path.relative_to(folder).as_posix(): path for path in content_files(folder)}
    if "card" in manifest:
        found.pop(CARD, None)
    link, problems = file_of(folder), []
    if link is not None and not _stands_for(link, folder):
        problems.append(f"{'content differs' if link.exists() else 'missing'}: {link.name}")
    problems += [f"missing: {name}" for name in expected if name not in found]
    problems += [f"not in the manifest: {name}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        if found[name].stat().st_size != expected[name]["bytes"]:
            problems.append(f"size differs: {name}")
        elif file_digest(found[name]) != expected[name]["sha256"]:
            problems.append(f"content differs: {name}")
    if digest_of(manifest["files"]) != manifest["digest"]:
        problems.append("the manifest's digest does not match its list of files")
    if not card_matches(folder, manifest):
        there = (folder / CARD).is_file()
        problems.append(f"{'content differs' if there else 'missing'}: {CARD}")
    return sorted(problems)


def card_matches(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether the card in `folder` is the one that its manifest implies, if it implies one."""
    if "card" not in manifest:
        return True
    path = folder / CARD
    return path.is_file() and file_digest(path) == manifest["card"]["sha256"]


def folder_of(out: Path) -> Path:
    """The artifact's folder where the user says -o `out`."""
    return out.with_name(out.name + _FOLDER_OF_FILE) if out.suffix in _FILES else out


def at(path: Path) -> Path:
    """The artifact's folder, where `path` may be the file that stands for it."""
    folder = folder_of(path)
    return folder if path.is_file() and folder.is_dir() else path


def file_of(folder: Path) -> Path | None:
    """The file that stands for the artifact in `folder`, None where it stands for itself."""
    name = folder.name.removesuffix(_FOLDER_OF_FILE)
    return folder.with_name(name) if name != folder.name and name.endswith(_FILES) else None


def expose(folder: Path) -> None:
    """Put a link to an artifact's one file where the user asked for that file."""
    path = file_of(folder)
    if path is None:
        return
    (source,) = folder.glob(f"*{path.suffix}")
    if _stands_for(path, folder):
        return
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise _foreign(path) from None
    except OSError:  # a file system without hard links
        path.symlink_to(source.relative_to(path.parent))


def _stands_for(path: Path, folder: Path) -> bool:
    """Whether `path` is the one file of the artifact in `folder`, or a copy of it.

    So is a link to what was there before the folder was removed.
    """
    if path.is_symlink() and path.parent / path.readlink().parent == folder:
        return True
    if not path.is_file():
        return False
    if any(path.samefile(source) for source in folder.glob(f"*{path.suffix}")):
        return True
    files = [
        file
        for file in read_manifest(folder).get("files", ())
        if file["path"].endswith(path.suffix)
    ]
    alike = [file for file in files if file["bytes"] == path.stat().st_size]
    return bool(alike) and file_digest(path) in {file["sha256"] for file in alike}


def _foreign(path: Path) -> RequestError:
    return RequestError(f"{path} exists and is not of llmopt's making", hint="choose another -o")


def check_destination(destination: Path) -> None:
    """Refuse to write over anything that llmopt did not write."""
    path = file_of(destination)
    if path is not None and os.path.lexists(path) and not _stands_for(path, destination):
        raise _foreign(path)
    if destination.is_dir() and any(destination.iterdir()) and not read_manifest(destination):
        raise RequestError(
            f"{destination} exists and is not an llmopt artifact", hint="choose another -o"
        )
    if destination.exists() and not destination.is_dir():
        raise RequestError(f"{destination} is a file", hint="choose another -o")


@contextlib.contextmanager
def workspace(destination: Path, key: str) -> Iterator[Path]:
    """A locked folder beside `destination` to build in, kept for resuming until `publish`.

    Its name comes from the step's key, so the same command finds it again after a kill.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = _work_folder(destination, key)
    folder.mkdir(exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LlmoptError(
                f"another llmopt is building {destination}", hint="wait for it, or stop it"
            ) from None
        yield folder
    except RequestError:
        shutil.rmtree(folder)  # what cannot be done as asked leaves nothing to resume
        raise
    finally:
        lock.close()


def clean(destination: Path, keep: str = "") -> None:
    """Remove what killed runs left beside `destination`, but for the work on the key `keep`."""
    for folder in destination.parent.glob(f".{destination.name}.llmopt-*"):
        if folder.is_dir() and not (keep and folder == _work_folder(destination, keep)):
            _remove_unlocked(folder)


def _work_folder(destination: Path, key: str) -> Path:
    return destination.parent / f".{destination.name}.llmopt-{key[:16]}"


def _remove_unlocked(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


def publish(
    built: Path, destination: Path, manifest: dict[str, Any], run: dict[str, Any],
    card: str | None = None,
) -> None:  # fmt: skip
    """Finish `built` and put it at `destination` in one step, replacing what stood there.

    RequestError where one file is to stand for it, and there are several.
    """
    link = file_of(destination)
    if link is not None and len(list(built.glob(f"*{link.suffix}"))) != 1:
        raise RequestError(f"{link} cannot be several files", hint="-o FOLDER")
    write_json(built / RUN_RECORD, run)
    write_records(built, manifest, card)
    if destination.is_dir() and not any(destination.iterdir()):
        destination.rmdir()
    if link is not None and _stands_for(link, destination):
        link.unlink()  # else it would stand for what is no longer there
    if destination.exists():
        _exchange(built, destination)
        shutil.rmtree(built)
    else:
        built.rename(destination)


def write_records(folder: Path, manifest: dict[str, Any], card: str | None) -> None:
    """Write a manifest, then the card that it implies: after a kill in between, `card_matches`
    tells that the card is to be written again."""
    write_json(folder / MANIFEST, manifest)
    if card is not None:
        _write_text(folder / CARD, card)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders atomically where the system can, else through a third name."""
    exchange, at_cwd = 2, -100  # RENAME_EXCHANGE, AT_FDCWD of renameat2(2)
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if rename and rename(at_cwd, names[0], at_cwd, names[1], exchange) == 0:
        return
    aside = first.with_name(f"{first.name}.old")
    second.rename(aside)
    first.rename(second)
    aside.rename(first)
