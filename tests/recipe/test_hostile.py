"""Recipes that would hang, crash or say something else than they seem to: refused at once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe import Recipe, load
from llmopt.recipe.matrix import expand

HEAD = "version: 1\nmodel: demo\n"
STEP = "steps:\n  - {id: q, quantize: {method: rtn}}\n"
NINES = ", ".join(["*l{}"] * 9)
LAUGHS = "x:\n  l0: &l0 [lol]\n" + "".join(
    f"  l{i}: &l{i} [{NINES.format(*[i - 1] * 9)}]\n" for i in range(1, 12)
)
MERGED = "x:\n  l0: &l0 {a: 1}\n" + "".join(
    f"  l{i}: &l{i} {{<<: [{NINES.format(*[i - 1] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "x:\n  - &c0 [a]\n" + "".join(f"  - &c{i} [*c{i - 1}]\n" for i in range(1, 5000))
MILLION = "matrix: {{damping: {0}, batch_size: {0}}}".format(list(range(1, 1001)))

#: name -> text, line of the error, a word of it
HOSTILE: dict[str, tuple[str, int | None, str]] = {
    "laughs": (HEAD + LAUGHS, None, "values, its aliases written out"),
    "merged laughs": (HEAD + MERGED, None, "values, its aliases written out"),
    "deep": (HEAD + "x: " + "[" * 5000 + "]" * 5000, 3, "nested more than 32"),
    "deep without an end": (HEAD + "x: " + "[" * 100_000, 3, "nested more than 32"),
    "deep mappings": (HEAD + "x: " + "{a: " * 5000 + "}" * 5000, 3, "nested more than 32"),
    "deep lines": (HEAD + "".join(" " * i + "a:\n" for i in range(600)), None, "nested more"),
    "deep by aliases": (HEAD + CHAIN, None, "nested more than 32"),
    "million": (HEAD + f"steps:\n  - id: q\n    {MILLION}\n    quantize: {{}}\n", 5, "at most 1,000"),
    "many steps": (HEAD + "steps:\n" + "".join(f"  - {{id: s{i}, bench: {{}}}}\n" for i in range(5000)), 3, "at most 1,000"),
    "itself": (HEAD + "x: &x {a: [1, *x]}\n", 3, "contains itself"),
    "itself, merged": (HEAD + "x: &x\n  <<: *x\n", 3, "contains itself"),
    "merge of a number": (HEAD + "<<: 5\n" + STEP, 1, "<< merges a mapping"),
    "digits": (HEAD + f"seed: {'9' * 100_000}\n" + STEP, 3, "more than 10,000 characters"),
    "some digits": (HEAD + f"seed: {'9' * 5000}\n" + STEP, 3, "is no integer"),
    "hexadecimal digits": (HEAD + f"seed: 0x{'f' * 9000}\n" + STEP, 3, "is no integer"),
    "base 60": (HEAD + f"seed: {':'.join(['59'] * 3000)}\n" + STEP, 3, "is no integer"),
    "beyond all numbers": (HEAD + "seed: 1e999\n" + STEP, 3, "seed"),
    "infinity": (HEAD + "seed: .inf\n" + STEP, 3, "seed"),
    "seed of no generator": (HEAD + f"seed: {2**64}\n" + STEP, 3, "seed"),
    "no integer": (HEAD + "seed: !!int many\n" + STEP, 3, "is no integer"),
    "empty integer": (HEAD + 'seed: !!int ""\n' + STEP, 3, "is no integer"),
    "no boolean": (HEAD + "seed: !!bool maybe\n" + STEP, 3, "is no true or false"),
    "python object": (HEAD + "seed: !!python/object:os.system x\n" + STEP, 3, "no values of type !!python"),
    "python mapping": (HEAD + "data: !!python/object:os.system {a: 1}\n" + STEP, 3, "no values of type !!python"),
    "python list": (HEAD + "x: !!python/object/apply:os.system [ls]\n" + STEP, 3, "no values of type !!python"),
    "binary": (HEAD + "name: !!binary aGVsbG8=\n" + STEP, 3, "no values of type !!binary"),
    "set": (HEAD + "x: !!set {a, b}\n" + STEP, 3, "no values of type !!set"),
    "own tag": (HEAD + "name: !mine x\n" + STEP, 3, "no values of type !mine"),
    "date for a number": (HEAD + "seed: 2024-01-01\n" + STEP, 3, "'2024-01-01'"),
    "impossible date": (HEAD + "seed: 2024-99-99\n" + STEP, 3, "'2024-99-99'"),
    "list as a key": (HEAD + "? [a]\n: b\n" + STEP, 1, "keys are plain words"),
    "key given twice": (HEAD + "model: demo\n" + STEP, 3, "given twice"),
    "tab": (HEAD + "data:\n\tcalibration: {}\n" + STEP, 4, "not valid YAML"),
    "two documents": (HEAD + STEP + "---\n" + HEAD, 5, "one document"),
    "no document": ("", 1, "empty"),
    "comments": ("# nothing\n\n", 1, "empty"),
    "zero byte": (HEAD + "name: a\0b\n" + STEP, 3, "'\\x00'"),
    "long text": (HEAD + f"name: {'x' * 20_000}\n" + STEP, 3, "more than 10,000 characters"),
    "long key": (HEAD + f"{'x' * 900}: 1\n" + STEP, 3, "unknown key"),
    "unknown directive": ("%YAML 9.0\n---\n" + HEAD + STEP, 1, "not valid YAML"),
    "unknown alias": (HEAD + "name: *nobody\n" + STEP, 3, "not valid YAML"),
    "variables that explode": (HEAD + f"name: {'${BIG}' * 1000}\n" + STEP, 3, "more than 10,000"),
    "variable without an end": (HEAD + f"name: '{'${a:-' * 1900}'\n" + STEP, None, ""),
    "variable that is YAML": (HEAD + "seed: ${NESTED}\n" + STEP, 3, "integer"),
    "variable that is digits": (HEAD + "seed: ${DIGITS}\n" + STEP, 3, "is no integer"),
    "terminal escapes": (HEAD + '"\\e[31mred": 1\n' + STEP, 3, "\\x1b[31mred"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("BIG", "x" * 100_000)
    monkeypatch.setenv("NESTED", "[" * 5000)
    monkeypatch.setenv("DIGITS", "9" * 5000)
    started = time.process_time()
    yield
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_where_it_stands(tmp_path: Path, name: str) -> None:
    text, line, word = HOSTILE[name]
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    if not word:
        load(path)
        return
    with pytest.raises(RecipeError) as refused:
        expand(*load(path))
    assert word in refused.value.message
    assert refused.value.message.startswith(f"{path}:")
    assert line is None or refused.value.line == line, refused.value.message
    assert len(refused.value.message) < 600
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    "override",
    [
        f"x={'[' * 5000}",
        f"x={'[' * 100_000}",
        f"seed={'9' * 5000}",
        f"x={{a: &a [1, 1], b: [{', '.join(['*a'] * 30_000)}]}}",
        "x=&x [*x]",
        "x=!!python/object:os.system x",
        "x=a: b: c",
        "x=\0",
        "seed=${NESTED}",
        "seed=${NOT_SET_ANYWHERE}",
        f"{'a.' * 30_000}b=1",
        f"steps.{'9' * 5000}.id=x",
        "steps.\u00b2.id=x",
        "steps..id=x",
        "=1",
        "steps=1",
        "steps.q=1",
        "model.a=1",
    ],
)  # fmt: skip
def test_it_is_refused_in_set_too(tmp_path: Path, override: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + STEP)
    with pytest.raises(RecipeError) as refused:
        load(path, [override])
    assert refused.value.message.startswith("--set ")
    assert len(refused.value.message) < 600


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "gone", Path("/dev/zero")):
        with pytest.raises(RequestError, match="a recipe is a YAML file"):
            load(path)
    with pytest.raises(RequestError, match="no recipe file"):
        load("x" * 5000)
    (tmp_path / "huge.yaml").write_bytes(b"#" * 3_000_000)
    with pytest.raises(RequestError, match="more than 500,000 bytes"):
        load(tmp_path / "huge.yaml")


def loaded(path: Path, text: str) -> Recipe:
    path.write_bytes(text.encode())
    return load(path)[0]


def test_windows_files_are_read(tmp_path: Path) -> None:
    crlf = "\ufeff" + (HEAD + STEP).replace("\n", "\r\n")
    assert loaded(tmp_path / "r.yaml", crlf).steps[0].id == "q"


def test_dates_are_text_and_exponents_numbers(tmp_path: Path) -> None:
    text = HEAD + "name: 2024-01-01\nsteps: [{id: q, quantize: {damping: 1e-2}}]\n"
    recipe = loaded(tmp_path / "r.yaml", text)
    assert recipe.name == "2024-01-01"
    assert recipe.steps[0].settings is not None
    assert recipe.steps[0].settings.solver.damping == 0.01


def test_merged_keys_give_way_to_own_ones_and_keep_their_lines(tmp_path: Path) -> None:
    text = """\
version: 1
model: demo
steps:
  - id: a
    quantize: &base
      method: rtn
      grid: int8
  - id: b
    quantize:
      <<: *base
      grid: int3
"""
    step = loaded(tmp_path / "r.yaml", text).steps[1].settings
    assert step is not None
    assert (step.method, step.grid) == ("rtn", "int3")
    with pytest.raises(RecipeError, match="unknown method") as refused:
        loaded(tmp_path / "r.yaml", text.replace("rtn", "rnt"))
    assert refused.value.line == 6


def test_set_takes_keys_as_errors_print_them(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD + "steps:\n  - {id: q.v2, quantize: {method: rtn}}\n")
    for key in ("steps[0].quantize.grid", "steps.0.quantize.grid", "steps.q.v2.quantize.grid"):
        step = load(path, [f"{key}=int3"])[0].steps[0].settings
        assert step is not None
        assert step.grid == "int3"
