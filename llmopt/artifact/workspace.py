"""How an artifact comes to stand at its place whole or not at all, and how a killed run resumes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmopt.artifact.destination import (
    file_of,
    refuse_strays,
    stands_for,
    work_folder,
)
from llmopt.artifact.documents import write_json
from llmopt.artifact.files import RUN_RECORD
from llmopt.artifact.manifest import read_manifest, write_records
from llmopt.artifact.members import ManifestJson
from llmopt.artifact.trust import trust
from llmopt.errors import LlmoptError, RequestError
from llmopt.specs.kinds import kind_of

_LOCK = "lock"


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


@contextlib.contextmanager
def workspace(destination: Path, key: str) -> Iterator[Path]:
    """A locked folder beside `destination` to build in, kept for resuming until `publish`.

    Its name comes from the step's key, so the same command finds it again after a kill. What
    cannot be done as asked leaves nothing to resume, but never takes what an earlier run left.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = work_folder(destination, key)
    resumed = os.path.lexists(folder)
    if resumed and (folder.is_symlink() or not folder.is_dir()):
        raise RequestError(
            f"{folder} is in the way: it is where {destination} would be built",
            hint="move it away",
        )
    folder.mkdir(exist_ok=True)
    lock = (folder / _LOCK).open("w")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LlmoptError(
                f"another llmopt is building {destination}", hint="wait for it, or stop it"
            ) from None
        yield folder
    except RequestError:
        if not resumed:
            shutil.rmtree(folder)
        raise
    finally:
        lock.close()


def clean(destination: Path) -> None:
    """Remove what killed runs left beside `destination`."""
    work = re.compile(re.escape(f".{destination.name}.llmopt-") + "[0-9a-f]{16}")
    for folder in destination.parent.iterdir():
        if work.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


def publish(
    built: Path, destination: Path, manifest: ManifestJson, run: Mapping[str, object],
    card: str | None = None,
) -> None:  # fmt: skip
    """Finish `built` and put it at `destination` in one step, replacing what stood there.

    Native code that was made here may run here. RequestError where one file is to stand for it,
    and there are several. What a user has put
    there while the step ran is not replaced: LlmoptError, and the same command goes on.
    """
    link = file_of(destination)
    if link is not None and len(list(built.glob(f"*{link.suffix}"))) != 1:
        raise RequestError(f"{link} cannot be several files", hint="-o FOLDER")
    if kind_of(manifest["format"]).native_code:
        trust(manifest["digest"])
    write_json(built / RUN_RECORD, run)
    write_records(built, manifest, card)
    if destination.is_dir() and not any(destination.iterdir()):
        destination.rmdir()
    if os.path.lexists(destination):
        _refuse_new_strays(destination)
    if link is not None and stands_for(link, destination):
        link.unlink()  # else it would stand for what is no longer there
    if destination.exists():
        _exchange(built, destination)
        shutil.rmtree(built)
    else:
        built.rename(destination)


def _refuse_new_strays(destination: Path) -> None:
    try:
        refuse_strays(destination)
    except RequestError as error:
        raise LlmoptError(error.message, hint="move them away; the same command goes on") from None


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
