"""Where artifacts may stand: never over, in or around what llmopt did not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmopt import artifact
from llmopt.errors import RequestError
from tests.artifacts import FILES, published, with_card


def test_destination_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="not an llmopt artifact"):
        artifact.check_destination(tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        artifact.check_destination(tmp_path / "notes.txt")
    artifact.check_destination(tmp_path / "new")
    artifact.check_destination(tmp_path / "new" / "newer")


def test_places_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name, says in (
        ("file/out", "is a file, not a folder"),
        ("file/out/deeper", "is a file, not a folder"),
        ("dangling", "is a link to gone"),
        ("loop", "is a link to loop"),
        ("link", "is a link to real"),
        ("dangling/out", "leads nowhere"),
        ("n" * 240, "too long"),
        ("n" * 300, "too long"),
        ("/".join(["n" * 200] * 30), "(?i)too long"),
    ):
        with pytest.raises(RequestError, match=says):
            artifact.check_destination(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="cannot be written to"):
        artifact.check_destination(tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mounted")
    for check in (artifact.check_destination, artifact.check_replaceable):
        with pytest.raises(RequestError, match="mount point"):
            check(tmp_path / "mounted")


@pytest.mark.parametrize("name", ["", ".", "..", "/", "out/.."])
def test_names_of_folders_that_are_there(name: str) -> None:
    with pytest.raises(RequestError, match="there already"):
        artifact.check_name(Path(name))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not UTF-8"):
        artifact.check_name(tmp_path / os.fsdecode(b"\xff"))


def test_apart_from_inputs_and_artifacts(tmp_path: Path) -> None:
    model = tmp_path / "zoo" / "model"
    model.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(model)
    made = published(tmp_path / "w4")
    for place, says in (
        (model, "is the input model"),
        (tmp_path / "alias", "is the input model"),
        (model / "out", "lies inside the input"),
        (model / "deep" / "out", "lies inside the input"),
        (tmp_path / "alias" / "out", "lies inside the input"),
        (tmp_path / "zoo", "holds the input"),
        (made / "out", "lies inside the artifact"),
    ):
        with pytest.raises(RequestError, match=says):
            artifact.check_apart(place, [model])
    artifact.check_apart(tmp_path / "zoo" / "out", [model])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("notes.txt", "notes.txt"),
        (".hidden", ".hidden"),
        ("sub/deep/notes.txt", "sub/deep/notes.txt"),
        ("runs/", "runs"),
        ("model.safetensors", "model.safetensors (changed)"),
        ("config.json", "config.json (changed)"),
        ("README.md", "README.md (changed)"),
    ],
)
def test_what_a_user_put_or_changed_is_found(tmp_path: Path, name: str, found: str) -> None:
    out = published(tmp_path / "out", FILES | {"sub/a.json": "{}"}, **with_card())
    artifact.check_replaceable(out)
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        path.mkdir()
    else:
        size = path.stat().st_size if path.exists() else 2
        path.write_text("x" * size)  # of the same size: its bytes tell
    assert list(artifact.strays(out)) == [found]
    with pytest.raises(RequestError, match="did not write") as raised:
        artifact.check_replaceable(out)
    assert found in raised.value.message


def test_links_and_odd_things_are_a_users(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    (out / "config.json").rename(tmp_path / "config.json")
    (out / "config.json").symlink_to(tmp_path / "config.json")
    (out / "data").symlink_to(tmp_path)
    os.mkfifo(out / "pipe")
    assert sorted(artifact.strays(out)) == ["config.json", "data", "pipe"]


def test_what_a_killed_write_left_is_ours(tmp_path: Path) -> None:
    out = published(tmp_path / "out", **with_card())
    for name in ("llmopt.json", "README.md"):
        (out / f".{name}.new").write_text("half")
    (out / "model.safetensors").unlink()
    assert list(artifact.strays(out)) == []


def test_many_files_are_counted(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    for number in range(9):
        (out / f"{number}.txt").write_text("x")
    with pytest.raises(RequestError, match=r"4\.txt and 4 more"):
        artifact.check_replaceable(out)


def gguf(folder: Path, content: str) -> None:
    published(folder, {"model.gguf": content})


def test_a_file_stands_for_the_artifact_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    folder = artifact.folder_of(out)
    assert folder == tmp_path / "m.gguf.llmopt"
    assert artifact.folder_of(tmp_path / "m") == tmp_path / "m"
    gguf(folder, "weights")
    artifact.expose(folder)
    assert out.samefile(folder / "model.gguf")
    assert artifact.at(out) == folder
    (folder / "another.gguf").write_text("a user's")
    for _ in range(2):
        artifact.expose(folder)
        assert out.samefile(folder / "model.gguf")
        out.unlink()


def test_a_file_that_took_the_place_of_ours_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    folder = artifact.folder_of(out)
    gguf(folder, "first")
    artifact.expose(folder)
    gguf(folder, "second")  # killed before it was exposed: the next run finds nothing in its way
    assert not out.exists()
    artifact.check_destination(folder)
    artifact.expose(folder)
    assert out.read_text() == "second"
    out.unlink()
    out.write_bytes((folder / "llmopt.run.json").read_bytes())
    with pytest.raises(RequestError, match="not of llmopt's making"):
        artifact.check_destination(folder)  # one of ours, but not the file that stands for them
    out.unlink()
    out.symlink_to(f"{folder.name}/gone.gguf")  # ours, on file systems without hard links
    artifact.check_destination(folder)
    out.unlink()
    out.write_bytes(b"theirs")
    for step in (artifact.check_destination, artifact.expose):
        with pytest.raises(RequestError, match="not of llmopt's making"):
            step(folder)
    assert out.read_bytes() == b"theirs"


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(RequestError, match="not of llmopt's making"):
        artifact.check_destination(artifact.folder_of(tmp_path / "m.gguf"))
