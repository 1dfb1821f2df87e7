"""Dataset folders: what `datasets.Dataset.save_to_disk` writes (Arrow), and Parquet files.

Read through pyarrow alone, column by column and batch by batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from llmopt.artifact import JsonObject
from llmopt.corpora.files import Record, chosen_field
from llmopt.errors import RequestError, require

_SPLIT_NAMES = {
    "train": ("train",),
    "calibration": ("calibration", "train"),
    "evaluation": ("evaluation", "validation", "test"),
}
"""Names of a dataset's own splits that serve each use of ours, the first that is there."""


class _DataFile(BaseModel):
    filename: str


_DATA_FILES = TypeAdapter(list[_DataFile])
"""What state.json says of a saved dataset's files."""


def is_dataset(folder: Path) -> bool:
    """Whether `folder` holds a saved dataset or Parquet files."""
    return (
        (folder / "state.json").is_file()
        or (folder / "dataset_dict.json").is_file()
        or bool(_parquet_files(folder))
    )


def shards(path: Path, split: str) -> tuple[str, list[Path]]:
    """The dataset's own name of the split that serves `split` ("" where it has none), its files."""
    if path.is_file():
        return "", [path]
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json").get("splits")
        names = splits if isinstance(splits, list) else []
        chosen = _choose(path, [str(name) for name in names], split)
        return chosen, _saved_files(path / chosen)
    if (path / "state.json").is_file():
        return "", _saved_files(path)
    return _parquet_split(path, split)


def check_column(file: Path, field: str) -> None:
    """Raise where the file's schema has no column `field`; reads the header only."""
    with _reader(file) as reader:
        _column(file, reader, field)


def rows(files: list[Path], field: str) -> Iterator[Record]:
    """The value under `field` of every row, files in order."""
    for file in files:
        with _reader(file) as reader:
            column = _column(file, reader, field)
            number = 0
            for batch in _batches(reader, column):
                for value in batch.column(column).to_pylist():
                    number += 1
                    yield f"{file}: row {number}", value


def _reader(file: Path) -> Any:
    """An open Parquet file or Arrow stream (datasets' own files are streams)."""
    purpose = f"reading {file.name}"
    pyarrow = require("pyarrow", extra="eval", purpose=purpose)
    try:
        if file.suffix == ".parquet":
            return require("pyarrow.parquet", extra="eval", purpose=purpose).ParquetFile(file)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(f"{file}: not a readable {file.suffix} file") from error


def _batches(reader: Any, field: str) -> Iterator[Any]:
    if hasattr(reader, "iter_batches"):
        yield from reader.iter_batches(batch_size=1024, columns=[field])
    else:
        yield from reader


def _column(file: Path, reader: Any, field: str) -> str:
    schema = getattr(reader, "schema_arrow", None) or reader.schema
    return chosen_field(str(file), field, list(schema.names))


def _saved_files(folder: Path) -> list[Path]:
    state = folder / "state.json"
    if not state.is_file():
        raise RequestError(f"{folder}: not a saved dataset (no state.json)")
    try:
        listed = _DATA_FILES.validate_python(_read_json(state).get("_data_files"))
    except ValidationError as error:
        raise RequestError(f"{state}: does not list the dataset's files") from error
    files = [folder / entry.filename for entry in listed]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise RequestError(f"{state}: lists {file.name}, which is not in the folder")
    return files


def _read_json(path: Path) -> JsonObject:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{path}: not valid JSON") from error
    if not isinstance(document, dict):
        raise RequestError(f"{path}: not a JSON object")
    return document


def _parquet_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    return [path for path in found if path.is_file()]


def _parquet_split(folder: Path, split: str) -> tuple[str, list[Path]]:
    """Files named like the hub's, train-00000-of-00002.parquet, belong to the split train."""
    files = _parquet_files(folder)
    names = list(dict.fromkeys(_split_of(path) for path in files))
    if not any(name in known for name in names for known in _SPLIT_NAMES.values()):
        return "", files
    chosen = _choose(folder, names, split)
    return chosen, [path for path in files if _split_of(path) == chosen]


def _split_of(path: Path) -> str:
    return path.stem.split("-", 1)[0]


def _choose(folder: Path, names: list[str], split: str) -> str:
    for name in _SPLIT_NAMES[split]:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise RequestError(
        f"{folder}: no split for {split} text (the splits are: {', '.join(names) or 'none'})",
        hint="name one split's own folder or file",
    )
