"""Opening what a model is said to lie in."""

from __future__ import annotations

import stat
from io import DEFAULT_BUFFER_SIZE, BufferedReader, FileIO
from pathlib import Path

from llmopt.errors import RequestError


def open_regular(path: Path, buffering: int = DEFAULT_BUFFER_SIZE) -> BufferedReader:
    """The file, opened for reading; RequestError for what is none, and would be waited for.

    A pipe without a writer blocks whoever opens it, a device may never end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return BufferedReader(FileIO(path), buffering)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from error
    raise RequestError(f"{path} is {_kind(mode)}, not a file")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")
