"""Every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from llmopt.corpora import chat, source, stdlib
from llmopt.errors import MissingDependency, RequestError


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_demo_splits_share_no_document() -> None:
    calibration = source.load("demo", split="calibration")
    evaluation = source.load("demo", split="evaluation")
    assert calibration.name == "demo/calibration"
    assert calibration.sha256 != evaluation.sha256
    assert not set(calibration.documents) & set(evaluation.documents)
    assert calibration.documents[0] == next(stdlib.documents("calibration"))[1]
    source.check("demo", split="evaluation")


def test_text_file_is_one_document_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffone\r\n\ntwo é\n".encode())
    corpus = source.load(str(path), split="calibration")
    assert (corpus.name, corpus.documents) == ("notes.txt", ("one\r\n\ntwo é\n",))
    data = corpus.documents[0].encode()
    expected = hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()
    assert corpus.sha256 == expected
    assert corpus.complete
    assert not corpus.rendered


def test_a_long_text_is_cut_at_a_line_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("first line\nsecond line\n")
    corpus = source.load(str(path), split="calibration", limit=15)
    assert corpus.documents == ("first line\n",)
    assert not corpus.complete


def test_a_long_line_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("éééé", encoding="utf-8")
    assert source.load(str(path), split="calibration", limit=5).documents == ("éé",)


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one", "id": 1}, {"text": "  "}, {"text": "two"})
    corpus = source.load(path, split="calibration")
    assert corpus.documents == ("one", "two")
    assert source.load(path, split="calibration", limit=3).documents == ("one",)
    assert not source.load(path, split="calibration", limit=3).complete
    source.check(path, split="calibration")


def test_hash_sees_where_documents_end(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", {"text": "ab"}, {"text": "c"})
    other = write(tmp_path / "b.jsonl", {"text": "a"}, {"text": "bc"})
    first, second = (source.load(path, split="calibration") for path in (one, other))
    assert first.sha256 != second.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text" "b"}\n', r"a\.jsonl:3: not valid JSON .* column 9"),
        (b'{"text": "a"}\n{"body": "b", "id": 1}\n', r":2: no field 'text' .*: body, id\)"),
        (b'{"text": "a"}\n["b"]\n', r":2: not a JSON object"),
        (b'{"text": "a"}\n{"text": 5}\n', r":2: expected a text .* found int"),
        (b'{"text": "a"}\n{"text": null}\n', r":2: expected a text .* found null"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r":2: not UTF-8"),
        (b'{"text": "a"}\n{"text": "\0"}\n', r":2: holds a zero byte"),
        (b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}", r":2: .* too many digits"),
        (b'{"text": "\\ud800"}\n', r":1: half of a surrogate pair"),
        (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", r":2: the JSON is nested too deeply"),
        (b'{"text": "a"}\n{"text": [{"role": "user", "content": ""}]}\n', r":2: chat .* mixed"),
        (b'\n{"text": " "}\n', r"a\.jsonl: holds no text"),
        (b"", r"a\.jsonl: holds no text"),
    ],
)
def test_bad_json_lines_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        source.load(str(path), split="calibration")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"txt": 1}\n' + b"junk\n", r":1: no field 'text' \(the fields are: txt\)"),
        ("a.jsonl", b"\n \n", "holds no text"),
        ("a.jsonl", b'{"text": 1}', "found int"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"fine\nnot \xff\n", r"a\.txt:2: not UTF-8"),
        ("a.txt", "é\na".encode("utf-16-le"), r"a\.txt:1: not UTF-8"),
        ("a.txt", "a\nb".encode("utf-16-be"), r"a\.txt:1: holds a zero byte"),
        ("a.pdf", b"%PDF", r"cannot tell what a \.pdf file is"),
    ],
)
def test_check_refuses_what_load_would(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message):
        source.check(str(tmp_path / name), split="calibration")
    with pytest.raises(RequestError, match=message):
        source.load(str(tmp_path / name), split="calibration")


def test_missing_file_and_plain_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such file or folder"):
        source.check(str(tmp_path / "absent.txt"), split="calibration")
    with pytest.raises(RequestError, match="no dataset in this folder"):
        source.check(str(tmp_path), split="calibration")


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TEMPLATE = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"


def test_messages_go_through_the_chat_template(
    tmp_path: Path, tokenizer_folder: Callable[..., Path]
) -> None:
    path = write(tmp_path / "chat.jsonl", {"messages": MESSAGES})
    folder = tokenizer_folder(chat_template=TEMPLATE)
    corpus = source.load(path, split="calibration", field="messages", tokenizer_folder=folder)
    assert corpus.documents == ("<s>[user]hi</s>[assistant]yo</s>",)
    assert corpus.rendered


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, MESSAGES, "no chat template"),
        (TEMPLATE, [{"role": "user"}], r":1: message 1 is not an object with a role"),
        ("{{ raise_exception('roles must alternate') }}", MESSAGES, r":1: .*roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", MESSAGES, r":1: .*unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", MESSAGES, r":1: .*Range too big"),
        ("{{ 'a' * 10**11 }}", MESSAGES, r":1: .*too much memory"),
        ("{{ 'a' * 2000 }}", MESSAGES, r":1: .*too much text"),
    ],
)
def test_chat_that_cannot_be_rendered(
    tmp_path: Path,
    tokenizer_folder: Callable[..., Path],
    template: str | None,
    messages: object,
    message: str,
) -> None:
    path = write(tmp_path / "chat.jsonl", {"messages": messages})
    folder = tokenizer_folder(chat_template=template) if template else tokenizer_folder()
    with pytest.raises(RequestError, match=message):
        source.load(
            path, split="calibration", field="messages", tokenizer_folder=folder, limit=1000
        )


def test_a_template_is_rendered_as_transformers_does(
    tmp_path: Path, tokenizer_folder: Callable[..., Path]
) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}\n  {%- if m.role == 'tool' %}{% continue %}"
        "{% endif %}{% generation %}{{ m | tojson }}{% endgeneration %}{{ eos_token }}\n"
        "{% endfor %}{{ tools }}"
    )
    messages = [
        *MESSAGES,
        {"role": "tool", "content": ""},
        {"role": "user", "content": "é", "x": None},
    ]
    path = write(tmp_path / "chat.jsonl", {"messages": messages})
    folder = tokenizer_folder(chat_template=template)
    corpus = source.load(path, split="calibration", field="messages", tokenizer_folder=folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert corpus.documents == (tokenizer.apply_chat_template(messages, tokenize=False),)


@pytest.mark.parametrize(
    "template", ["{% for i in range(9**5) %}" * 3 + "{% endfor %}" * 3, "{{ 9**(9**9) }}"]
)
def test_a_template_without_an_end_is_ended(
    template: str,
    tmp_path: Path,
    tokenizer_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat, "_SECONDS", 1)
    path = write(tmp_path / "chat.jsonl", {"messages": MESSAGES})
    folder = tokenizer_folder(chat_template=template)
    with pytest.raises(RequestError, match=r":1: .*does not come to an end"):
        source.load(path, split="calibration", field="messages", tokenizer_folder=folder)


def test_conversations_as_sharegpt_has_them(
    tmp_path: Path, tokenizer_folder: Callable[..., Path]
) -> None:
    """Under a name of their own, which need not be given; empty ones are left out."""
    says = [("System", "be"), ("human", "hi"), ("gpt", "yo"), ("observation", "1"), ("bard", "k")]
    messages = [{"from": who, "value": what, "weight": None} for who, what in says]
    path = write(
        tmp_path / "chat.jsonl",
        {"id": 1, "conversations": []},
        {"id": 2, "conversations": messages},
        {"id": 3, "conversations": MESSAGES},
    )
    source.check(path, split="calibration")
    folder = tokenizer_folder(chat_template=TEMPLATE)
    corpus = source.load(path, split="calibration", tokenizer_folder=folder)
    assert corpus.documents == (
        "<s>[system]be</s>[user]hi</s>[assistant]yo</s>[tool]1</s>[assistant]k</s>",
        "<s>[user]hi</s>[assistant]yo</s>",
    )


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (
            {"from": "narrator", "value": "a"},
            r":1: message 2 is from 'narrator', whose role",
        ),
        ({"from": ["human"], "value": "a"}, r":1: message 2 is from .* not known"),
        ({"from": "human", "value": 5}, r":1: message 2: its value is no text"),
        ({"from": "human"}, r":1: message 2 is not an object with a role and a content"),
        ({"value": "a"}, r":1: message 2 is not an object with a role and a content"),
        ("a", r":1: message 2 is not an object with a role and a content"),
    ],
)
def test_messages_that_are_none_are_refused_before_work(
    tmp_path: Path, message: object, problem: str
) -> None:
    path = write(tmp_path / "chat.jsonl", {"messages": [MESSAGES[0], message]})
    with pytest.raises(RequestError, match=problem):
        source.check(path, split="calibration")


def test_two_fields_that_may_be_meant_are_not_chosen_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": MESSAGES, "conversations": MESSAGES})
    with pytest.raises(RequestError, match=r"no field 'text' .*: messages, conversations\)"):
        source.check(path, split="calibration")
    path = write(tmp_path / "b.jsonl", {"messages": MESSAGES})
    with pytest.raises(RequestError, match=r"no field 'body' .*: messages\)"):
        source.check(path, split="calibration", field="body")


def test_chat_needs_a_model(tmp_path: Path) -> None:
    path = write(tmp_path / "chat.jsonl", {"messages": MESSAGES})
    source.check(path, split="calibration", field="messages")
    with pytest.raises(RequestError, match="need a model"):
        source.load(path, split="calibration", field="messages")


def test_tables_without_pyarrow_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency) as caught:
        source.check(str(tmp_path), split="calibration")
    assert caught.value.hint == 'pip install "llmopt[eval]"'


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys\n"
        "from llmopt.corpora import source, tokenize\n"
        "source.check('demo', split='evaluation')\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
