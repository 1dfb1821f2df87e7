"""A GGUF file as a model folder: its config and tokenizer, and links to the file. No torch.

Nothing is copied. The folder can be made again at any time, so it lies among the caches; it is
named by the file's header, size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import yaml

from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.gguf.about import front_matter
from llmopt.formats.gguf.container import GgufFile, read_gguf
from llmopt.formats.gguf.hf_config import hf_config
from llmopt.formats.gguf.tokenizer_restore import write_tokenizer
from llmopt.specs.formats import GGUF

#: of what is written; a change makes old folders useless
_VERSION = 3
#: tokenizers of tests and of bare models
_NO_TOKENIZER = ("", "no_vocab", "none")


def model_folder(path: Path, caches: Path) -> Path:
    """A model folder in `caches` for a GGUF file, made unless it is there.

    RequestError where the file is damaged or holds a model that is not supported.
    """
    gguf = read_gguf(path)
    folder = caches / GGUF / _key(gguf)
    try:
        if not (folder / "config.json").is_file():
            _make(gguf, folder)
        for part in gguf.paths:
            _link(folder / part.name, part.resolve())
    except OSError as error:
        raise LlmoptError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def _key(gguf: GgufFile) -> str:
    digest = hashlib.sha256(str(_VERSION).encode())
    for path in gguf.paths:
        stat = path.stat()
        first = min((t.start for t in gguf.tensors.values() if t.file == path), default=0)
        digest.update(json.dumps([path.name, stat.st_size, stat.st_mtime_ns]).encode())
        with path.open("rb") as file:
            digest.update(file.read(first))
    return digest.hexdigest()[:24]


def _make(gguf: GgufFile, folder: Path) -> None:
    """Write the folder aside and move it to its place, where another process may be faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        text = json.dumps(hf_config(gguf), indent=2, ensure_ascii=False) + "\n"
        (aside / "config.json").write_text(text, encoding="utf-8")
        if gguf.metadata.get("tokenizer.ggml.model", "") not in _NO_TOKENIZER:
            write_tokenizer(gguf.metadata, aside)
        if said := front_matter(gguf.metadata):
            text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
            (aside / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")
        aside.chmod(0o755)
        try:
            aside.rename(folder)
        except OSError as error:
            if not (folder / "config.json").is_file():
                raise RequestError(f"cannot write to {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    """Make `link` point to the file, which may have been moved since."""
    if link.is_symlink() and link.readlink() == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
