"""Tables as text: .csv and .tsv."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmopt.corpora import source
from llmopt.errors import RequestError


def load(path: Path, content: bytes, field: str = "text") -> tuple[str, ...]:
    path.write_bytes(content)
    source.check(str(path), split="calibration", field=field)
    return source.load(str(path), split="calibration", field=field).documents


def test_quotes_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    content = '\ufeffid,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,é\r\n3,\r\n'.encode()
    assert load(tmp_path / "a.csv", content) == ('a, "b"\r\nc', "é")
    assert load(tmp_path / "a.csv", b"text\none\ntwo") == ("one", "two")
    assert load(tmp_path / "A.TSV", b"id\tbody\n1\ta, b\n", "body") == ("a, b",)


def test_texts_longer_than_the_library_allows(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert load(tmp_path / "a.csv", f"text\n{text}\n".encode()) == (text,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"text\n", "holds no text"),
        (b"text\n\n \n", "holds no text"),
        (b"id,body\n1,a\n", r"a\.csv:1: no field 'text' .*: id, body\)"),
        (b"id;text\n1;a\n", r"a\.csv:1: no field 'text' .*: id;text\)"),
        (b"text,text\na,b\n", r"a\.csv:1: two columns are called 'text'"),
        (b'id,text\n1,"a\nb"\n2,c, d\n', r"a\.csv:4: the header names 2 columns, .* has 3"),
        (b"id,text\n1\n", r"a\.csv:2: the header names 2 columns, .* has 1"),
        (b'id,text\n1,a\n2,"b\nc\n', r"a\.csv:3: not a valid table"),
        (b'id,text\n1,"a"b\n', r"a\.csv:2: not a valid table"),
        (b"id,text\r1,a\r", "not a valid table"),
        ("id,text\n1,a\n2,é\n".encode("latin-1"), r"a\.csv:3: not UTF-8 text"),
        ("id,text\n1,a\n".encode("utf-16"), r"a\.csv:1: not UTF-8 text"),
        ("id,text\n1,a\n".encode("utf-16-le"), r"a\.csv:1: holds a zero byte"),
    ],
)
def test_bad_tables_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        source.load(str(tmp_path / "a.csv"), split="calibration")


def test_names_in_messages_are_short(tmp_path: Path) -> None:
    names = ",".join("n" * 1000 for _ in range(1000))
    with pytest.raises(RequestError, match=r"the fields are: nnn.*, \.\.\.\)") as caught:
        load(tmp_path / "a.csv", names.encode())
    assert len(caught.value.message) < 2000
