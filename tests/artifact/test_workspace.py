"""Artifacts appear whole or not at all, and what a killed run left is there for the next."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from llmopt import artifact
from llmopt.errors import LlmoptError, RequestError
from tests.artifacts import FILES, manifest_of, published


def test_published_artifact_is_complete(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    assert artifact.complete(out, "k")
    assert not artifact.complete(out, "another key")
    assert artifact.known_digest(out) == artifact.read_manifest(out)["digest"]
    (out / "config.json").unlink()
    assert not artifact.complete(out, "k")


def test_publishing_replaces_in_one_step(tmp_path: Path) -> None:
    published(tmp_path / "out")
    out = published(tmp_path / "out", FILES | {"model.safetensors": "other weights"})
    assert (out / "model.safetensors").read_text() == "other weights"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_came_while_the_step_ran_is_not_replaced(tmp_path: Path) -> None:
    out = published(tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(LlmoptError, match=r"did not write.*: notes\.txt") as raised:
        published(out, FILES | {"model.safetensors": "other"})
    assert raised.value.exit_code == 1
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "model.safetensors").read_text() == "weights"
    assert (tmp_path / ".out.built" / "model.safetensors").read_text() == "other"


def test_two_runs_do_not_build_the_same_thing(tmp_path: Path) -> None:
    with (
        artifact.workspace(tmp_path / "out", "k" * 64),
        pytest.raises(LlmoptError, match="another llmopt"),
        artifact.workspace(tmp_path / "out", "k" * 64),
    ):
        pass


def test_clean_keeps_running_work_and_what_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out[1]"
    notes = tmp_path / ".out[1].llmopt-notes"
    notes.mkdir()
    (notes / "lock").touch()
    link = tmp_path / f".out[1].llmopt-{'d' * 16}"
    link.symlink_to(notes)
    with artifact.workspace(out, "a" * 64):
        pass
    with artifact.workspace(out, "b" * 64) as running:
        artifact.clean(out)
        assert sorted(tmp_path.iterdir()) == sorted([running, notes, link])
    artifact.clean(out)
    assert sorted(tmp_path.iterdir()) == sorted([notes, link])


def test_workspace_survives_for_resuming(tmp_path: Path) -> None:
    with artifact.workspace(tmp_path / "out", "a" * 64) as folder:
        (folder / "part").write_text("done")
    with artifact.workspace(tmp_path / "out", "a" * 64) as folder:
        assert (folder / "part").read_text() == "done"
        with (folder / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_wrong_request_leaves_the_work_of_earlier_runs(tmp_path: Path) -> None:
    def wrong(key: str) -> None:
        with pytest.raises(RequestError), artifact.workspace(tmp_path / "out", key):
            raise RequestError("cannot be done as asked")

    wrong("a" * 64)
    assert list(tmp_path.iterdir()) == []  # of its own it leaves nothing
    with artifact.workspace(tmp_path / "out", "a" * 64) as folder:
        (folder / "part").write_text("hours of work")
    for key in ("a" * 64, "b" * 64):
        wrong(key)
        assert list(tmp_path.iterdir()) == [folder]
        assert (folder / "part").read_text() == "hours of work"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_where_the_work_would_be(tmp_path: Path, kind: str) -> None:
    (tmp_path / "theirs").mkdir()
    place = tmp_path / f".out.llmopt-{'a' * 16}"
    place.write_text("mine") if kind == "file" else place.symlink_to("theirs")
    with (
        pytest.raises(RequestError, match="is in the way"),
        artifact.workspace(tmp_path / "out", "a" * 64),
    ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [place.name, "theirs"]


def test_several_files_cannot_stand_for_one(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (built / name).write_text(name)
    manifest = manifest_of(artifact.describe_files(built))
    with pytest.raises(RequestError, match="several files"):
        artifact.publish(built, artifact.folder_of(tmp_path / "m.gguf"), manifest, {})
