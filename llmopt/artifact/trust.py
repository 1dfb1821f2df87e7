"""Which native code may run: what was made here, and what the user trusts, by digest."""

from __future__ import annotations

import os
from pathlib import Path

from llmopt.artifact.files import CARD, describe_files, digest_of
from llmopt.errors import LlmoptError, RequestError


def contents_digest(folder: Path) -> str:
    """The digest of what a folder holds now: an artifact's `digest` if it is as it was written."""
    return digest_of([file for file in describe_files(folder) if file["path"] != CARD])


def trust(digest: str) -> None:
    """Let native code whose files have this digest run from now on."""
    path = _place(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise LlmoptError(f"cannot write to {path.parent}: {error.strerror}") from error


def is_trusted(digest: str) -> bool:
    """Whether `trust` was told of it; nothing that is changed since has the same digest."""
    return _place(digest).is_file()


def check_trusted(folder: Path) -> None:
    """RequestError where native code in a folder was neither made here nor trusted."""
    if not is_trusted(contents_digest(folder)):
        raise RequestError(
            f"{folder} holds native code that was not made here, and may do anything when it runs",
            hint=f"if you trust who made it: llmopt trust {folder}",
        )


def _place(digest: str) -> Path:
    """A file for each digest, in a folder that is no cache: what it says cannot be made again."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "llmopt" / "trusted" / digest.removeprefix("sha256:")
