"""Packed texts: read as what they hold; damaged, misnamed and exploding ones are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from llmopt.corpora import packed, source
from llmopt.errors import RequestError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXTS = {
    ".txt": b"one\ntwo\n",
    ".jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    ".json": b'["one", "two"]',
    ".csv": b"text\none\ntwo\n",
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", TEXTS)
def test_packed_files_are_what_they_hold(tmp_path: Path, suffix: str, packing: str) -> None:
    path, plain = tmp_path / f"a{suffix}{packing.upper()}", tmp_path / f"a{suffix}"
    path.write_bytes(PACK[packing](TEXTS[suffix]))
    plain.write_bytes(TEXTS[suffix])
    source.check(str(path), split="calibration")
    corpus = source.load(str(path), split="calibration")
    assert corpus.documents == source.load(str(plain), split="calibration").documents
    assert (corpus.name, corpus.complete) == (path.name, True)


@pytest.mark.parametrize("packing", PACK)
def test_parts_that_were_packed_alone_follow_each_other(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACK[packing](b"one\n") + PACK[packing](b"two\n"))
    corpus = source.load(str(path), split="calibration")
    assert corpus.documents == ("one\ntwo\n",)
    cut = source.load(str(path), split="calibration", limit=5)
    assert (cut.documents, cut.complete) == (("one\n",), False)


@pytest.mark.parametrize("packing", PACK)
def test_damage_is_one_sentence(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    text = b"".join(b'{"text": "%d"}\n' % (n * n) for n in range(1000))
    whole = PACK[packing](text)
    cut, altered = whole[: len(whole) // 2], bytearray(whole)
    altered[len(whole) // 2] ^= 255
    for content in (cut, whole[:9], bytes(altered), whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(RequestError, match=r"a\.jsonl\.\w+: damaged or cut|:\d+: not "):
            source.load(str(path), split="calibration")


def test_names_that_lie(tmp_path: Path) -> None:
    for packing in PACK:
        path = tmp_path / f"a.txt{packing}"
        path.write_bytes(b"plain text")
        with pytest.raises(RequestError, match=f"not a {packing} file"):
            source.check(str(path), split="calibration")
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(RequestError, match=r"a\.jsonl: a packed file") as caught:
        source.check(str(tmp_path / "a.jsonl"), split="calibration")
    assert caught.value.hint == "name it a.jsonl.gz, or unpack it"
    for name in ("a.tar.gz", "a.parquet.gz", "a.zip"):
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
        with pytest.raises(RequestError, match=r"cannot tell what a \.\S+ file is"):
            source.check(str(tmp_path / name), split="calibration")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("packing", PACK)
def test_what_explodes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str, suffix: str
) -> None:
    monkeypatch.setattr(packed, "_ALWAYS", 10_000)
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(PACK[packing](b" " * 3_000_000))
    with pytest.raises(RequestError, match="unpacks to more than 100 times its size"):
        source.check(str(path), split="calibration")
