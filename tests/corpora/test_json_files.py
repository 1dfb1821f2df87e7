"""What .json files hold, and every way in which one can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmopt.corpora import json_files, source
from llmopt.errors import RequestError

HI = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def read(path: Path, content: object, field: str = "text") -> list[object]:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return [value for _, value in json_files.records(path, field)]


@pytest.mark.parametrize(
    "content",
    [
        ["one", "two"],
        [{"text": "one"}, {"text": "two", "id": 2}],
        {"text": ["one", "two"], "id": [1, 2]},
        {"text": {"0": "one", "1": "two"}, "id": {"0": 1, "1": 2}},
        {"version": 1, "data": ["one", "two"]},
        {"rows": ["one", "two"]},
        {"version": 1, "train": [{"text": "one"}, {"text": "two"}]},
        b'\xef\xbb\xbf\n [ "one" ,\r\n "two" ]\n\n',
        b'{"text": "one"}\n\n{"text": "two"}',
        b'\n{"text": "one", "tags": ["x"]}\r\n{"text": "two", "tags": []}\r\n',
    ],
)
def test_every_shape_gives_the_same_texts(tmp_path: Path, content: object) -> None:
    assert read(tmp_path / "a.json", content) == ["one", "two"]
    source.check(str(tmp_path / "a.json"), split="calibration")
    corpus = source.load(str(tmp_path / "a.json"), split="calibration")
    assert (corpus.name, corpus.documents) == ("a.json", ("one", "two"))


@pytest.mark.parametrize(
    "content",
    [
        [HI, HI],
        [{"conversations": HI}, {"conversations": HI, "id": 2}],
        {"conversations": [HI, HI]},
        {"conversations": [{"messages": HI}, {"messages": HI}]},
        {"data": [{"conversation": HI}, {"conversation": []}, {"conversation": HI}]},
    ],
)
def test_conversations_are_found_where_there_is_no_text(
    tmp_path: Path, content: object, tokenizer_folder: Callable[..., Path]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1))
    source.check(str(path), split="calibration")
    folder = tokenizer_folder(chat_template=TEMPLATE)
    corpus = source.load(str(path), split="calibration", tokenizer_folder=folder)
    assert corpus.documents == ("[user]hi[assistant]yo",) * 2


def test_one_object_is_one_record(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", {"text": "one", "tags": ["x"]}) == ["one"]
    assert read(tmp_path / "a.json", {"messages": HI}) == [HI]
    assert read(tmp_path / "a.json", {"body": "b", "text": "t"}, "body") == ["b"]


def test_a_list_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its members, not its whole, are bounded, and only those that are asked for are read."""
    monkeypatch.setattr(json_files, "_CHUNK", 7)
    texts = [{"text": "é" * length, "n": 12345} for length in (1, 50, 3, 200, 2)]
    path = tmp_path / "a.json"
    assert read(path, texts) == [each["text"] for each in texts]
    monkeypatch.setattr(json_files, "LONGEST", 100)
    path.write_text("[" + '"one", ' * 1000 + "junk")
    found = json_files.records(path, "text")
    assert next(found) == (f"{path}: item 1", "one")
    with pytest.raises(RequestError, match=r"a\.json:1: item 1001 is not valid JSON"):
        list(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a JSON list nor an object"),
        (b'"text"', "neither a JSON list nor an object"),
        (b"junk", "neither a JSON list nor an object"),
        (b"[]", "holds no text"),
        (b'["", " "]', "holds no text"),
        (b"{}", r"no field 'text' \(the fields are: none\)"),
        (b'["a",\n\n"b" "c"]', r"a\.json:3: item 2 .*a comma or \] is missing"),
        (b'["a",\n"b"', r"a\.json:2: item 2 .*a comma or \] is missing"),
        (b'["a",\n"b', r"a\.json:2: item 2 .*Unterminated"),
        (b'["a",]', r"a\.json:1: item 2 "),
        (b'["a"]\n["b"]', r"a\.json:2: text after the end"),
        (b'["a", {"body": "b"}]', r"item 2: no field 'text' .*: body\)"),
        (b'["a", 5]', r"item 2: expected a text .* found int"),
        (b'["a", null]', r"item 2: .* found null"),
        (b'["a", [{"role": "user", "content": ""}]]', r"item 2: chat messages and plain .* mixed"),
        (b'["a",\n"\xff"]', r"a\.json:2: not UTF-8"),
        ('["a"]'.encode("utf-16"), r"a\.json:1: not UTF-8"),
        (b'["a", ' + b"[" * 100_000, "item 2 is not valid JSON .nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "nested too deeply"),
        (b'["a", ' + b"1" * 5000 + b"]", "item 2 .*too many digits"),
        (b'{"text": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"text": ["a"\n}', r"not valid JSON .* line 2"),
        (b'{"text": "a"}\n{"text" "b"}\n', r"a\.json:2: not valid JSON"),
        (b'{"text": ["a", 5]}', r"item 2: expected a text .* found int"),
        (b'{"title": "t", "tags": ["a"]}', r"no field 'text' .*: title, tags"),
        (b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "no field 'text' .*: train, test"),
        (b'[{"conversations": [], "messages": []}]', "no field 'text'"),
    ],
)  # fmt: skip
def test_bad_json_names_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        source.load(str(tmp_path / "a.json"), split="calibration")


def test_what_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    monkeypatch.setattr(json_files, "_CHUNK", 100)
    for content in (b'{"text": "' + b"a" * 2000 + b'"}', b'{"text":\n' + b" " * 2000 + b'"a"}'):
        with pytest.raises(RequestError, match="an object of more than 1,000 characters"):
            read(tmp_path / "a.json", content)
    with pytest.raises(RequestError, match=r"item 2 .*within 1,000 characters"):
        read(tmp_path / "a.json", ["a", ["b"] * 2000])
