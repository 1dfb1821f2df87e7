"""Reports as files: written whole, signed, and only over a report that nobody has changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from llmopt import artifact
from llmopt.errors import RequestError

_SIGNATURE = "<!-- report by llmopt, sha256:{} -->\n"
_SIGNED = re.compile(rb"(.*)<!-- report by llmopt, sha256:([0-9a-f]{64}) -->\n\Z", re.DOTALL)
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


def write(path: Path, text: str) -> None:
    """Write a report, HTML or Markdown, with a comment at its end by which it is known again."""
    if not text.endswith("\n"):
        text += "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    artifact.write_text(Path(os.path.realpath(path)), text + _SIGNATURE.format(digest))


def check(path: Path, *, overwrite: bool = False, hint: str, apart: Iterable[Path] = ()) -> None:
    """RequestError where a report cannot be written to `path`, or would take another's place.

    `apart` are folders that it may not stand in, since a file more would change them; so are
    models' and artifacts' folders.
    """
    place = Path(os.path.realpath(path))
    if path.is_dir():
        raise RequestError(f"{path} is a folder, not a file", hint="name a file in it")
    artifact.check_parent(place)
    inside = [Path(os.path.realpath(folder)) for folder in apart]
    for folder in place.parents:
        if folder in inside or _is_model(folder):
            raise RequestError(
                f"{path} lies in {folder}, which a file more would change",
                hint="write the report to another place",
            )
    if not os.path.lexists(place) or (overwrite and place.is_file()):
        return
    if not place.is_file():
        raise RequestError(f"{path} is no file")
    if not _is_ours(place):
        raise RequestError(f"{path} exists, and is not a report as llmopt wrote it", hint=hint)


def _is_ours(path: Path) -> bool:
    match = _SIGNED.fullmatch(path.read_bytes())
    return match is not None and hashlib.sha256(match[1]).hexdigest() == match[2].decode()


def _is_model(folder: Path) -> bool:
    if (folder / artifact.MANIFEST).is_file():
        return True
    return (folder / "config.json").is_file() and any(
        any(folder.glob(pattern)) for pattern in _WEIGHTS
    )
