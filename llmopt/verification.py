"""Whether an artifact is as it was written: every byte, its manifest and its card. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from llmopt import __version__, artifact
from llmopt.artifact import ManifestJson
from llmopt.errors import RequestError
from llmopt.report import card

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.IGNORECASE)


def verify(folder: Path, *, kept: str | None = None) -> list[str]:
    """What is wrong with the artifact in `folder`: [] if all of it is as llmopt wrote it.

    Whoever can write to the folder can make another manifest with another digest: `kept` is the
    manifest's digest as it was noted elsewhere. Hidden files are not looked at.
    RequestError where there is no artifact, or `kept` is no digest of a manifest.
    """
    manifest = artifact.parse_manifest(folder)
    if not manifest:
        raise RequestError(
            f"{folder} has no {artifact.MANIFEST}: only llmopt's artifacts can be verified"
        )
    return sorted(
        [*_of_manifest(manifest, kept), *_of_files(folder, manifest), *_of_card(folder, manifest)]
    )


def _of_manifest(manifest: ManifestJson, kept: str | None) -> Iterator[str]:
    found = manifest[artifact.MANIFEST_DIGEST]
    if found != artifact.seal_of(manifest):
        yield f"{artifact.MANIFEST} was changed: its {artifact.MANIFEST_DIGEST} is that of another"
    if artifact.digest_of(manifest["files"]) != manifest["digest"]:
        yield "the manifest's digest does not match its list of files"
    if kept is None:
        return
    match = _DIGEST.fullmatch(kept.strip())
    if match is None:
        raise RequestError(
            f"--digest {kept!r} is no digest: that has 64 hexadecimal digits",
            hint="llmopt verify prints it as the digest to keep",
        )
    wanted = f"sha256:{match[1].lower()}"
    if wanted == manifest["digest"] != found:
        raise RequestError(
            f"--digest {kept} is the digest of the contents, which says nothing of the manifest",
            hint="compare with the digest that llmopt verify prints as the one to keep",
        )
    if wanted != found:
        yield f"the manifest's digest is {found}, not {wanted}"


def _of_files(folder: Path, manifest: ManifestJson) -> Iterator[str]:
    expected = {file["path"]: file for file in manifest["files"]}
    own = {artifact.MANIFEST, artifact.RUN_RECORD, *([artifact.CARD] if "card" in manifest else [])}
    link = artifact.file_of(folder)
    if link is not None and not artifact.stands_for(link, folder):
        yield f"{'content differs' if link.exists() else 'missing'}: {link.name}"
    for name, path in artifact.entries(folder):
        if name not in own and name not in expected and not artifact.hidden(name):
            yield f"not in the manifest: {name}"
        elif name in own and not path.is_file():
            yield f"no file: {name}"
    for name, file in expected.items():
        path = folder / name
        if not path.is_file() or not _within(path, folder):
            yield f"missing: {name}"
        elif path.stat().st_size != file["bytes"]:
            yield f"size differs: {name}"
        elif artifact.file_digest(path) != file["sha256"]:
            yield f"content differs: {name}"


def _within(path: Path, folder: Path) -> bool:
    """Whether no folder on the way to a file is a link. A file may be one: caches of the hub are
    made of them, and what is read through it is compared."""
    return path.parent.resolve().is_relative_to(folder.resolve())


def _of_card(folder: Path, manifest: ManifestJson) -> Iterator[str]:
    """The card must be the one that was written, and say what the manifest says."""
    kept = manifest.get("card")
    if kept is None:
        return
    path = folder / artifact.CARD
    if not path.is_file():
        yield f"missing: {artifact.CARD}"
        return
    if artifact.file_digest(path) != kept["sha256"]:
        yield f"content differs: {artifact.CARD}"
    if kept["rendered_by"] != __version__:
        return  # another llmopt words it in another way
    try:
        text = card.render(manifest)
    except (ValidationError, KeyError, TypeError, ValueError):
        yield f"no {artifact.CARD} can be made from the manifest"
        return
    if path.read_bytes() != text.encode():
        yield f"{artifact.CARD} is not what the manifest implies"
