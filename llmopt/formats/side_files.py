"""The files that come with a model beside its weights and config: which of them are carried over.

No torch. What is carried over is whatever came with the model, folders included: tokenizers, chat
templates, licences, pictures. What stays behind: weights in other layouts and the folders that
hold them, code, hidden files, and links that lead out of the model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmopt.errors import LlmoptError, RequestError

#: ends of the names of weight files, whatever their case
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|pkl|pickle|gguf|ggml|onnx|onnx_data|onnx\.data|h5|msgpack|ot|"
    r"tflite|pte|nemo|engine|npz|mlmodel|mlpackage|mlmodelc|index\.json)$|^consolidated\b",
    re.IGNORECASE,
)
#: folders that hold a model in another layout, by the names that repositories give them
_OTHER_LAYOUTS = re.compile(
    r"(original|consolidated|onnx|openvino|coreml|tensorrt|.*\.mlpackage|.*\.mlmodelc)$",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"(\.(py|pyc|pyo|pyd|pyx|so|dll|dylib|exe|sh|bat|cu|cuh|cpp)|\.so\.[\d.]+|^__pycache__)$",
    re.IGNORECASE,
)
#: written anew for each artifact
_OWN = {"README.md", "config.json", "quantize_config.json"}
#: which no artifact takes from another, wherever they lie
_RECORDS = {"llmopt.json", "llmopt.run.json"}
#: what need not be fetched from the hub, as `fnmatch` patterns
NOT_FETCHED = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.gguf", "*.onnx", "*.onnx_data", "*.h5"),
    *(f"*.{end}" for end in ("msgpack", "ot", "tflite", "nemo", "mlmodel", "py", "pyc", "so")),
    *("*/*.safetensors", "consolidated*", "original/*", "onnx/*", "openvino/*", "coreml/*"),
    *("*.mlpackage/*", ".*", "*/.*"),
)

#: in a copy of a model among the caches: what stayed behind when it was made
_LEFT_OUT = ".llmopt-left-out.json"

CODE, OTHER_WEIGHTS = "code", "other weights"
LINK, NO_FILE, NO_TEXT = "a link out of the model", "not a file", "a name that is not UTF-8"


@dataclass
class SideFiles:
    """Names below a model's folder, with slashes, sorted.

    `left_out` says why of each file or folder that stays behind, but for the weights that are
    read, what is written anew and hidden files.
    """

    carried: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def side_files(folder: Path, weights: frozenset[str] = frozenset()) -> SideFiles:
    """What of a model directory goes into an artifact made from it; `weights` are what is read.

    Links are followed inside the folder, and to where its config or weights really lie, as in the
    hub's cache; no further.
    """
    found = SideFiles(left_out=_noted(folder))
    homes = _homes(folder)
    for path in sorted(_walk(folder, folder, found)):
        name = path.relative_to(folder).as_posix()
        if name in weights or name in _OWN or path.name in _RECORDS:
            continue
        reason = _reason(path, homes)
        if reason is None:
            found.carried.append(name)
        else:
            found.left_out[os.fsencode(name).decode("utf-8", "replace")] = reason
    found.left_out = dict(sorted(found.left_out.items()))
    return found


def note_left_out(copy: Path, left_out: dict[str, str]) -> None:
    """Keep in a copy of a model what its `side_files` are to say of the model it was made from."""
    (copy / _LEFT_OUT).write_text(json.dumps(left_out, ensure_ascii=False), "utf-8")


def _noted(copy: Path) -> dict[str, str]:
    """What `note_left_out` kept; nothing where there is no such file, or it is not ours."""
    note = copy / _LEFT_OUT
    try:
        noted = json.loads(note.read_text("utf-8")) if note.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(noted, dict) and all(isinstance(why, str) for why in noted.values())
    return noted if ours else {}


def copy_files(source: Path, names: Iterable[str], target: Path) -> None:
    """Copy files below one folder to the same places below another, byte for byte."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise LlmoptError(f"cannot copy {source / name}: {error.strerror}") from error


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, or says where they are."""
    return _WEIGHTS.search(name) is not None


def _walk(top: Path, folder: Path, found: SideFiles) -> Iterator[Path]:
    """The files below a folder that is no other model; what is left out whole goes to `found`."""
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise RequestError(f"cannot read {folder}: {error.strerror}") from error
    if folder != top and (reason := _whole(folder, paths)):
        found.left_out[f"{folder.relative_to(top).as_posix()}/"] = reason
        return
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            yield from _walk(top, path, found)
        else:
            yield path


def _whole(folder: Path, paths: list[Path]) -> str | None:
    """Why a folder inside the model's is left out with all that is in it; None where it is not."""
    if _CODE.search(folder.name):
        return CODE
    if _OTHER_LAYOUTS.match(folder.name) or any(is_weights(path.name) for path in paths):
        return OTHER_WEIGHTS
    return None


def _reason(path: Path, homes: set[Path]) -> str | None:
    """Why a file is left out; None where it is carried over."""
    if is_weights(path.name):
        return OTHER_WEIGHTS
    if _CODE.search(path.name):
        return CODE
    if os.fsencode(path.name).decode("utf-8", "replace") != path.name:
        return NO_TEXT
    try:
        target, mode = path.resolve(), path.stat().st_mode
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return NO_FILE
    if path.is_symlink() and not any(target.is_relative_to(home) for home in homes):
        return LINK
    return None if stat.S_ISREG(mode) else NO_FILE


def _homes(folder: Path) -> set[Path]:
    """The folders in which the model lies: its own, and that of each file that makes it a model."""
    made_of = [folder / "config.json", *folder.glob("*.safetensors")]
    return {folder.resolve(), *(path.resolve().parent for path in made_of if path.is_file())}
