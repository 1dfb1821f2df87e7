"""Where text comes from: `demo`, a text file, JSON, CSV, Parquet, or a saved dataset.

No torch here: the planner checks sources with `check`, which reads first lines and headers only.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmopt.corpora import chat, delimited, files, json_files, stdlib, tables
from llmopt.corpora.files import Record
from llmopt.corpora.packed import PACKINGS, suffixes
from llmopt.errors import RequestError

Split = Literal["train", "calibration", "evaluation"]
Kind = Literal["demo", "text", "jsonl", "json", "csv", "tsv", "table"]

READ_LIMIT = 64_000_000
"""Bytes of UTF-8 text: over ten million tokens, far more than any calibration reads."""

_CHECKED_BYTES = 65_536
_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst", ".raw", ".py", ".tokens", ""})
_SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv",
    **dict.fromkeys(_TEXT_SUFFIXES, "text"),
}  # fmt: skip
_KINDS = (
    "demo, a text file (.txt, .md), .jsonl, .json, .csv or .tsv, each also with "
    f"{', '.join(PACKINGS)}, or .parquet, or a folder that datasets saved"
)


@dataclass(frozen=True)
class Corpus:
    """Text under a name that says nothing of the machine it was read on.

    `sha256` covers the documents in order, as they are tokenized: for chat, after rendering.
    `rendered`: the documents already hold their special tokens (a chat template wrote them).
    `complete`: False where the source has more text than the limit it was read with.
    """

    name: str
    sha256: str
    documents: tuple[str, ...]
    rendered: bool = False
    complete: bool = True


def load(
    source: str,
    *,
    split: Split,
    field: str = "text",
    tokenizer_folder: Path | None = None,
    limit: int = READ_LIMIT,
) -> Corpus:
    """Read up to `limit` bytes of the source's text; empty documents are left out.

    `split` chooses among what the source has to choose from: the demo corpus and datasets with
    splits of their own. `field` names the member of a JSON object or the column of a table; a list
    of messages there is rendered with the chat template found in `tokenizer_folder`.
    """
    name, records, whole = _records(source, kind_of(source), split, field, limit)
    documents, complete, rendered = _gather(records, tokenizer_folder, limit)
    if not documents:
        raise _empty(source)
    return Corpus(name, _digest(documents), tuple(documents), rendered, complete and whole)


def check(source: str, *, split: Split, field: str = "text") -> None:
    """Raise RequestError where `load` would at its first record; fast, tokenizes nothing."""
    kind = kind_of(source)
    if kind == "demo":
        return
    if kind == "table":
        tables.check_column(tables.shards(Path(source), split)[1][0], field)
        return
    _, records, whole = _records(source, kind, split, field, _CHECKED_BYTES)
    first = next(records, None)
    if first is None:
        raise _empty(source)
    if _is_chat(*first):
        chat.plain(*first)
    elif kind == "text" and not first[1].strip() and whole:
        raise _empty(source)


def kind_of(source: str) -> Kind:
    """What `source` is, from its name and what a folder holds."""
    if source == "demo":
        return "demo"
    path = Path(source)
    if path.is_dir():
        if not tables.is_dataset(path):
            raise RequestError(f"{source}: no dataset in this folder", hint=f"data is {_KINDS}")
        return "table"
    if not path.is_file():
        raise RequestError(f"{source}: no such file or folder", hint=f"data is {_KINDS}")
    suffix, packing = suffixes(path)
    if suffix in {".parquet", ".arrow"} and not packing:
        return "table"
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    raise RequestError(
        f"{source}: cannot tell what a {suffix}{packing} file is", hint=f"data is {_KINDS}"
    )


def _records(
    source: str, kind: Kind, split: Split, field: str, limit: int
) -> tuple[str, Iterator[Record], bool]:
    """The corpus' name, its records, read as they are asked for, and whether none was cut."""
    if kind == "demo":
        return f"demo/{split}", iter(stdlib.documents(split)), True
    path = Path(source)
    name = path.resolve().name
    if kind == "text":
        text, whole = files.text(path, limit)
        return name, iter([(source, text)]), whole
    if kind == "jsonl":
        found = files.json_lines(path, field)
    elif kind == "json":
        found = json_files.records(path, field)
    elif kind != "table":
        found = delimited.rows(path, field, "," if kind == "csv" else "\t")
    else:
        own_split, shards = tables.shards(path, split)
        name = f"{name}/{own_split}" if own_split else name
        found = tables.rows(shards, field)
    return name, (record for record in found if record[1] != []), True


def _gather(
    records: Iterator[Record], tokenizer_folder: Path | None, limit: int
) -> tuple[list[str], bool, bool]:
    """Documents within `limit` bytes, whether that is all, whether a chat template wrote them."""
    first = next(records, None)
    if first is None:
        return [], True, False
    rendered = _is_chat(*first)
    everything = itertools.chain([first], records)
    if not rendered:
        return *_collected(everything, limit, None), False
    with chat.renderer(tokenizer_folder, limit) as render:
        return *_collected(everything, limit, render), True


def _collected(
    records: Iterator[Record], limit: int, render: chat.Render | None
) -> tuple[list[str], bool]:
    """Documents within `limit` bytes, and whether that is all."""
    documents: list[str] = []
    size = 0
    for place, value in records:
        if _is_chat(place, value) != (render is not None):
            raise RequestError(f"{place}: chat messages and plain texts are mixed in one source")
        text = render(place, value) if render else value
        if not text.strip():
            continue
        size += _encoded_size(place, text)
        if documents and size > limit:
            return documents, False
        documents.append(text)
    return documents, True


def _is_chat(place: str, value: object) -> bool:
    """False for a text, True for a list of messages; raise for anything else."""
    if isinstance(value, str):
        return False
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return True
    found = "null" if value is None else type(value).__name__
    raise RequestError(f"{place}: expected a text or a list of chat messages, found {found}")


def _encoded_size(place: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(f"{place}: half of a surrogate pair, which is no text") from error


def _digest(documents: list[str]) -> str:
    """SHA-256 over each document's length (8 bytes, little-endian) and UTF-8 bytes."""
    digest = hashlib.sha256()
    for data in map(str.encode, documents):
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _empty(source: str) -> RequestError:
    return RequestError(f"{source}: holds no text")
