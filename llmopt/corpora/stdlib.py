"""The `demo` corpus: text that every machine with Python has.

The sources of the standard library and pydoc's documentation topics, read from the running
interpreter and split by top-level module name, so that training, calibration and evaluation
text never share a module. Nothing is copied into the project; what a run really used is named
by the hash in its manifest.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_SKIPPED_FOLDERS = frozenset(
    {
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
        "encodings",  # tables of code points, not text
        "lib-dynload",
    }
)
_SMALLEST_DOCUMENT = 400  # characters; stubs and empty __init__ files teach and measure nothing


def split_of(module: str) -> str:
    """The split a top-level module name (or documentation topic) belongs to.

    A stable hash of the name decides: 9% calibration, 9% evaluation, the rest training.
    """
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 100
    if bucket < 9:
        return "calibration"
    return "evaluation" if bucket < 18 else "train"


def documents(split: str, *, with_tests: bool = False) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document of `split`, in a stable order.

    `with_tests` adds CPython's own test suite where it is installed, each file under the split
    of the module it tests: only the training script asks for it, since distributions leave the
    test suite out.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in _sources(root):
        parts = path.relative_to(root).parts
        is_test = bool(_TEST_FOLDERS.intersection(parts[:-1]))
        if is_test and not with_tests:
            continue
        if parts[-1].startswith("_sysconfigdata") or parts == ("pydoc_data", "topics.py"):
            continue  # one is the machine's own, the other is read as topics below
        module = _tested_module(parts) if is_test else parts[0].removesuffix(".py")
        if split_of(module.lstrip("_")) != split:
            continue
        text = _read(path)
        if len(text) >= _SMALLEST_DOCUMENT:
            yield "/".join(parts), text
    yield from _topics(root, split)


def _sources(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in _SKIPPED_FOLDERS and not name.startswith("config-")
        ]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _tested_module(parts: tuple[str, ...]) -> str:
    """`test/test_json/test_decode.py` -> `json`; a package's own tests -> the package."""
    if parts[0] not in _TEST_FOLDERS:
        return parts[0]
    return (parts[1] if len(parts) > 1 else parts[0]).removesuffix(".py").removeprefix("test_")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""  # a handful of files are deliberately in other encodings


def _topics(root: Path, split: str) -> Iterator[tuple[str, str]]:
    path = root / "pydoc_data" / "topics.py"
    if not path.exists():
        return
    for node in ast.parse(_read(path)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            for name in sorted(topics):
                if split_of(f"topic {name}") == split and len(topics[name]) >= _SMALLEST_DOCUMENT:
                    yield f"topics/{name}", topics[name]
