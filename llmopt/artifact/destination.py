"""Where an artifact is to stand, and what may not be written over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmopt.artifact.documents import unfinished
from llmopt.artifact.files import CARD, MANIFEST, RUN_RECORD, entries, file_digest
from llmopt.artifact.manifest import parse_manifest, read_manifest
from llmopt.errors import RequestError
from llmopt.specs.kinds import artifact_files

#: what follows the name of a file that stands for an artifact in the name of its folder
_FOLDER_OF_FILE = ".llmopt"
#: bytes of a file's name on every usual file system
_LONGEST_NAME = 255
_SHOWN = 5
_ELSEWHERE = "choose another -o"
_AWAY = f"move them away, or {_ELSEWHERE}"


def folder_of(out: Path) -> Path:
    """The artifact's folder where the user says -o `out`."""
    return out.with_name(out.name + _FOLDER_OF_FILE) if out.suffix in artifact_files() else out


def at(path: Path) -> Path:
    """The artifact's folder, where `path` may be the file that stands for it."""
    folder = folder_of(path)
    return folder if path.is_file() and folder.is_dir() else path


def file_of(folder: Path) -> Path | None:
    """The file that stands for the artifact in `folder`, None where it stands for itself."""
    name = folder.name.removesuffix(_FOLDER_OF_FILE)
    return (
        folder.with_name(name) if name != folder.name and name.endswith(artifact_files()) else None
    )


def work_folder(destination: Path, key: str) -> Path:
    """Where the step with this key is built. The same command finds it again after a kill."""
    return destination.parent / f".{destination.name}.llmopt-{key[:16]}"


def expose(folder: Path) -> None:
    """Put a link to an artifact's one file where the user asked for that file."""
    path = file_of(folder)
    if path is None:
        return
    if stands_for(path, folder):
        return
    listed = (file["path"] for file in read_manifest(folder)["files"])
    source = folder / next(name for name in listed if name.endswith(path.suffix))
    try:
        path.hardlink_to(source)
    except FileExistsError:
        raise _foreign(path) from None
    except OSError:  # a file system without hard links
        path.symlink_to(source.relative_to(path.parent))


def stands_for(path: Path, folder: Path) -> bool:
    """Whether `path` is the one file of the artifact in `folder`, or a copy of it.

    So is a link to what was there before the folder was removed.
    """
    if path.is_symlink() and path.parent / path.readlink().parent == folder:
        return True
    if not path.is_file():
        return False
    if any(path.samefile(source) for source in folder.glob(f"*{path.suffix}")):
        return True
    listed = parse_manifest(folder).get("files", ())
    size = path.stat().st_size
    alike = [f for f in listed if f["path"].endswith(path.suffix) and f["bytes"] == size]
    return bool(alike) and file_digest(path) in {file["sha256"] for file in alike}


def check_name(out: Path) -> None:
    """RequestError where `out` can be no new folder's name, whatever stands there."""
    if out.name in ("", ".."):
        raise RequestError(f"-o {out} is a folder that is there already", hint="-o NEW_FOLDER")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise RequestError(f"-o {os.fsencode(out)!r} is not UTF-8", hint=_ELSEWHERE) from None


def check_destination(destination: Path) -> None:
    """Refuse a place where nothing can be published, or that llmopt did not write."""
    _check_length(destination)
    path = file_of(destination)
    if path is not None and os.path.lexists(path) and not stands_for(path, destination):
        raise _foreign(path)
    if destination.is_symlink() and not read_manifest(destination):
        raise _link(destination)
    if destination.exists() and not destination.is_dir():
        raise RequestError(f"{destination} is a file", hint=_ELSEWHERE)
    if not destination.is_dir():
        check_parent(destination)
    elif any(destination.iterdir()):
        if not read_manifest(destination):
            raise RequestError(
                f"{destination} exists and is not an llmopt artifact", hint=_ELSEWHERE
            )
    else:
        check_can_move(destination)


def check_apart(destination: Path, inputs: Iterable[Path]) -> None:
    """Refuse a place inside an input or another artifact, and one that holds an input.

    A file that is added to a model changes its digest for ever.
    """
    _check_length(destination)
    place = _real(destination)
    for each in inputs:
        source = _real(each)
        if place == source:
            raise RequestError(f"{destination} is the input model", hint=_ELSEWHERE)
        if source in place.parents:
            raise RequestError(
                f"{destination} lies inside the input {each}, which it would change",
                hint=_ELSEWHERE,
            )
        if place in source.parents:
            raise RequestError(f"{destination} holds the input {each}", hint=_ELSEWHERE)
    around = next((folder for folder in place.parents if (folder / MANIFEST).is_file()), None)
    if around is not None:
        raise RequestError(
            f"{destination} lies inside the artifact {around}, which it would change",
            hint=_ELSEWHERE,
        )


def check_replaceable(destination: Path) -> None:
    """Refuse, before work, what a step's result could not take the place of.

    That is a place that cannot be written to, and an artifact with files in it that llmopt did
    not write, or that were changed since.
    """
    if destination.is_symlink():
        raise _link(destination)
    check_parent(destination)
    if destination.is_dir():
        check_can_move(destination)
        refuse_strays(destination)


def refuse_strays(destination: Path) -> None:
    """RequestError naming what a user has put or changed in the artifact's folder."""
    found = sorted(strays(destination))
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        names = ", ".join(found[:_SHOWN])
        raise RequestError(
            f"{destination} holds what llmopt did not write, and would be replaced: {names}{more}",
            hint=_AWAY,
        )


def strays(folder: Path) -> Iterator[str]:
    """What stands in an artifact's folder and is not as its manifest says: a user's, for all
    that can be known."""
    manifest = read_manifest(folder)
    known = {file["path"]: file["sha256"] for file in manifest.get("files", ())}
    sizes = {file["path"]: file["bytes"] for file in manifest.get("files", ())}
    if "card" in manifest:
        known[CARD] = manifest["card"]["sha256"]
    records = (MANIFEST, RUN_RECORD)
    own = {*records, *(unfinished(folder / name).name for name in (*records, CARD))}
    for name, path in entries(folder):
        if name in own and path.is_file():
            continue
        if name not in known or path.is_symlink() or not path.is_file():
            yield name
            continue
        size = path.stat().st_size
        if size != sizes.get(name, size) or file_digest(path) != known[name]:
            yield f"{name} (changed)"


def check_parent(path: Path) -> None:
    """RequestError where nothing can be made at `path`."""
    _check_length(path)
    for folder in path.absolute().parents:
        if not os.path.lexists(folder):
            continue
        if not folder.exists():
            raise RequestError(f"{folder} is a link that leads nowhere", hint=_ELSEWHERE)
        if not folder.is_dir():
            raise RequestError(f"{folder} is a file, not a folder", hint=_ELSEWHERE)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RequestError(f"{folder} cannot be written to", hint=_ELSEWHERE)
        return


def check_can_move(destination: Path) -> None:
    """RequestError for a folder whose place no other can take."""
    if destination.is_mount():
        raise RequestError(
            f"{destination} is a mount point, which nothing can take the place of",
            hint="-o a folder in it",
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # resolve() raises RuntimeError at a link to itself


def _check_length(destination: Path) -> None:
    longest = work_folder(destination, "0" * 16)
    try:
        os.lstat(longest)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise RequestError(f"{destination}: {error.strerror}", hint=_ELSEWHERE) from None
    if len(os.fsencode(longest.name)) > _LONGEST_NAME:
        raise RequestError(f"the name {destination.name} is too long", hint=_ELSEWHERE)


def _link(destination: Path) -> RequestError:
    return RequestError(
        f"{destination} is a link to {destination.readlink()}: an artifact is a folder itself",
        hint="name with -o the folder that it leads to, or remove the link",
    )


def _foreign(path: Path) -> RequestError:
    return RequestError(f"{path} exists and is not of llmopt's making", hint=_ELSEWHERE)
