"""Dataset folders as `datasets` and the hub lay them out, written here with pyarrow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmopt.corpora import source
from llmopt.errors import RequestError

pyarrow: Any = pytest.importorskip("pyarrow")


def saved(folder: Path, *shards: list[object], field: str = "text") -> Path:
    """What Dataset.save_to_disk leaves: Arrow streams and a state that lists them."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        table = pyarrow.table({field: shard, "id": list(range(len(shard)))})
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names]})
    )
    return folder


def parquet(path: Path, *texts: str) -> None:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), path)


def test_saved_dataset_reads_its_shards_in_order(tmp_path: Path) -> None:
    folder = saved(tmp_path / "books", ["a", ""], ["b"])
    source.check(str(folder), split="calibration")
    corpus = source.load(str(folder), split="calibration")
    assert (corpus.name, corpus.documents) == ("books", ("a", "b"))


def test_saved_dictionary_serves_each_use_from_its_split(tmp_path: Path) -> None:
    for name in ("train", "test"):
        saved(tmp_path / "books" / name, [name])
    (tmp_path / "books" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    calibration = source.load(str(tmp_path / "books"), split="calibration")
    evaluation = source.load(str(tmp_path / "books"), split="evaluation")
    assert (calibration.name, calibration.documents) == ("books/train", ("train",))
    assert (evaluation.name, evaluation.documents) == ("books/test", ("test",))


def test_parquet_files_named_after_splits(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", "a")
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", "b")
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", "c")
    assert source.load(str(tmp_path), split="calibration").documents == ("a", "b")
    assert source.load(str(tmp_path), split="evaluation").documents == ("c",)


def test_parquet_files_with_other_names_are_one_corpus(tmp_path: Path) -> None:
    parquet(tmp_path / "part-0.parquet", "a")
    parquet(tmp_path / "part-1.parquet", "b")
    assert source.load(str(tmp_path), split="evaluation").documents == ("a", "b")
    single = source.load(str(tmp_path / "part-1.parquet"), split="evaluation")
    assert (single.name, single.documents) == ("part-1.parquet", ("b",))


def test_no_split_fits(tmp_path: Path) -> None:
    for name in ("en", "train"):
        parquet(tmp_path / f"{name}-0.parquet", "a")
    with pytest.raises(RequestError, match=r"no split for evaluation .*: en, train\)"):
        source.check(str(tmp_path), split="evaluation")


def test_missing_column_names_those_there(tmp_path: Path) -> None:
    folder = saved(tmp_path / "books", ["a"], field="body")
    for act in (source.check, source.load):
        with pytest.raises(RequestError, match=r"no field 'text' .*: body, id\)"):
            act(str(folder), split="calibration")


def test_conversations_are_found_where_there_is_no_text(
    tmp_path: Path, tokenizer_folder: Callable[..., Path]
) -> None:
    folder = saved(tmp_path / "chats", [[{"from": "human", "value": "hi"}]], field="conversations")
    source.check(str(folder), split="calibration")
    model = tokenizer_folder(chat_template="{{ messages[0].role }}: {{ messages[0].content }}")
    corpus = source.load(str(folder), split="calibration", tokenizer_folder=model)
    assert corpus.documents == ("user: hi",)


def test_a_null_names_its_row(tmp_path: Path) -> None:
    folder = saved(tmp_path / "books", ["a", None])
    with pytest.raises(RequestError, match=r"row 2: expected a text .* found null"):
        source.load(str(folder), split="calibration")


def test_damaged_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "books", ["a"])
    data = folder / "data-00000-of-00001.arrow"
    data.write_bytes(b"junk")
    with pytest.raises(RequestError, match=r"not a readable \.arrow file"):
        source.check(str(folder), split="calibration")
    data.unlink()
    with pytest.raises(RequestError, match="which is not in the folder"):
        source.check(str(folder), split="calibration")
    (folder / "state.json").write_text("{}")
    with pytest.raises(RequestError, match="does not list the dataset's files"):
        source.check(str(folder), split="calibration")
    (tmp_path / "x.parquet").write_bytes(b"PAR1junkPAR1")
    with pytest.raises(RequestError, match=r"not a readable \.parquet file"):
        source.check(str(tmp_path / "x.parquet"), split="calibration")
