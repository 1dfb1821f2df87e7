"""Whether a model is sound before anything is made of it: one look, for every verb and target.

Its tensors are those that its config asks for, and every number in them is one. Both are looked at
once for each change of its files; what was found sound is remembered among the caches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from llmopt import artifact
from llmopt.caches import cache_folder
from llmopt.formats.kind import kind_in, reader

#: of what is looked at; a change means to look anew
_VERSION = 1
#: models whose soundness is remembered
_MOST = 1000


def check_model(folder: Path, progress: Callable[[int, int], None] = lambda *_: None) -> None:
    """RequestError where the model in `folder` cannot be worked with, naming the tensor.

    A tensor that is missing, has another shape or dtype than its config asks for, or has no place
    in the model; a value that is NaN or infinite, in whatever tensor. `progress` is told how many
    of the weights' bytes were looked at.
    """
    known = _known()
    key = _key(folder)
    if key in known:
        return
    reader(kind_in(folder)).check(folder, progress)
    artifact.write_cache(_file(), dict.fromkeys([*known, key][-_MOST:], True))


def _key(folder: Path) -> str:
    versions = artifact.versions()
    return f"{_VERSION} {versions.get('transformers')} {artifact.fingerprint(folder)}"


def _file() -> Path:
    return cache_folder() / "sound.json"


def _known() -> list[str]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return list(found) if isinstance(found, dict) else []
