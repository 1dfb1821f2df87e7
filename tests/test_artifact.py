"""Artifacts appear whole or not at all, and are what their manifests say."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from llmopt import artifact
from llmopt.errors import LlmoptError, RequestError


def build(folder: Path, text: str = "weights") -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text("{}")
    files = artifact.describe_files(folder)
    return {"schema": 1, "key": "k", "files": files, "digest": artifact.digest_of(files)}


def published(tmp_path: Path, text: str = "weights") -> Path:
    built, destination = tmp_path / f"built-{text}", tmp_path / "out"
    artifact.publish(built, destination, build(built, text), {"seconds": 1.0})
    return destination


def test_published_artifact_verifies_and_is_complete(tmp_path: Path) -> None:
    out = published(tmp_path)
    assert artifact.verify(out) == []
    assert artifact.complete(out, "k")
    assert not artifact.complete(out, "another key")
    assert artifact.known_digest(out) == artifact.read_manifest(out)["digest"]


def test_publishing_replaces_in_one_step(tmp_path: Path) -> None:
    published(tmp_path)
    out = published(tmp_path, "other weights")
    assert (out / "model.safetensors").read_text() == "other weights"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_any_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    out = published(tmp_path)
    data = bytearray((out / name).read_bytes())
    data[0] ^= 1
    (out / name).write_bytes(bytes(data))
    assert artifact.verify(out) == [f"content differs: {name}"]


def test_missing_added_and_resized_files_are_found(tmp_path: Path) -> None:
    out = published(tmp_path)
    (out / "config.json").unlink()
    (out / "extra.bin").write_text("x")
    (out / "model.safetensors").write_text("short")
    assert artifact.verify(out) == [
        "missing: config.json", "not in the manifest: extra.bin", "size differs: model.safetensors",
    ]  # fmt: skip
    assert not artifact.complete(out, "k")


def test_an_edited_list_of_files_does_not_match_the_digest(tmp_path: Path) -> None:
    out = published(tmp_path)
    manifest = json.loads((out / "llmopt.json").read_text())
    manifest["files"] = []
    (out / "llmopt.json").write_text(json.dumps(manifest))
    assert "the manifest's digest does not match its list of files" in artifact.verify(out)


def test_verify_refuses_what_llmopt_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no llmopt\.json"):
        artifact.verify(tmp_path)


def test_a_broken_manifest_is_a_request_error(tmp_path: Path) -> None:
    (tmp_path / "llmopt.json").write_text("{")
    with pytest.raises(RequestError, match=r"can(not)? be read"):
        artifact.read_manifest(tmp_path)
    assert not artifact.complete(tmp_path, "k")


def test_foreign_model_is_hashed_once_per_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "model")
    first = artifact.open_artifact("model", tmp_path / "model")
    assert artifact.known_digest(tmp_path / "model") == first.digest
    monkeypatch.setattr(artifact, "describe_files", lambda _: pytest.fail("hashed again"))
    assert artifact.open_artifact("model", tmp_path / "model") == first
    monkeypatch.undo()
    (tmp_path / "model" / "config.json").write_text('{"a": 1}')
    assert artifact.open_artifact("model", tmp_path / "model").digest != first.digest


def test_destination_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="not an llmopt artifact"):
        artifact.check_destination(tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        artifact.check_destination(tmp_path / "notes.txt")
    artifact.check_destination(tmp_path / "new")


def test_two_runs_do_not_build_the_same_thing(tmp_path: Path) -> None:
    with (
        artifact.workspace(tmp_path / "out", "k" * 64),
        pytest.raises(LlmoptError, match="another llmopt"),
        artifact.workspace(tmp_path / "out", "k" * 64),
    ):
        pass


def test_clean_keeps_running_work_and_the_key_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with artifact.workspace(out, "a" * 64):
        pass
    with artifact.workspace(out, "b" * 64) as running, artifact.workspace(out, "c" * 64) as asked:
        artifact.clean(out, keep="c" * 64)
        assert sorted(tmp_path.iterdir()) == sorted([running, asked])
    artifact.clean(out)
    assert list(tmp_path.iterdir()) == []


def test_workspace_survives_for_resuming(tmp_path: Path) -> None:
    with artifact.workspace(tmp_path / "out", "k" * 64) as folder:
        (folder / "part").write_text("done")
    with artifact.workspace(tmp_path / "out", "k" * 64) as folder:
        assert (folder / "part").read_text() == "done"
        with (folder / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_step_key_depends_on_everything() -> None:
    keys = {
        artifact.step_key("quantize", 1, {"a": 1}, {"model": "x"}),
        artifact.step_key("quantize", 2, {"a": 1}, {"model": "x"}),
        artifact.step_key("bench", 1, {"a": 1}, {"model": "x"}),
        artifact.step_key("quantize", 1, {"a": 2}, {"model": "x"}),
        artifact.step_key("quantize", 1, {"a": 1}, {"model": "y"}),
    }
    assert len(keys) == 5


def test_write_json_leaves_no_half_document(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        artifact.write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_finite_replaces_what_json_cannot_hold() -> None:
    assert artifact.finite({"a": [float("nan"), 1.0], "b": float("inf")}) == {
        "a": [None, 1.0],
        "b": None,
    }


def test_a_file_stands_for_the_artifact_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    folder = artifact.folder_of(out)
    assert folder == tmp_path / "m.gguf.llmopt"
    assert artifact.folder_of(tmp_path / "m") == tmp_path / "m"
    built = tmp_path / "built"
    built.mkdir()
    (built / "model.gguf").write_bytes(b"weights")
    files = artifact.describe_files(built)
    manifest = {"schema": 1, "files": files, "digest": artifact.digest_of(files)}
    artifact.publish(built, folder, manifest, {})
    artifact.expose(folder)
    assert out.samefile(folder / "model.gguf")
    assert artifact.at(out) == folder
    assert artifact.verify(folder) == []
    out.unlink()
    assert artifact.verify(folder) == ["missing: m.gguf"]
    out.write_bytes(b"others'")
    assert artifact.verify(folder) == ["content differs: m.gguf"]
    out.write_bytes(b"weights")
    assert artifact.verify(folder) == []  # a copy, as rsync makes it


def test_a_file_that_took_the_place_of_ours_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    folder = artifact.folder_of(out)

    def publish(content: bytes) -> None:
        built = tmp_path / "built"
        built.mkdir()
        (built / "model.gguf").write_bytes(content)
        files = artifact.describe_files(built)
        manifest = {"schema": 1, "files": files, "digest": artifact.digest_of(files)}
        artifact.publish(built, folder, manifest, {})

    publish(b"first")
    artifact.expose(folder)
    publish(b"second")  # killed before it was exposed: the next run finds nothing in its way
    assert not out.exists()
    artifact.check_destination(folder)
    artifact.expose(folder)
    assert out.read_bytes() == b"second"
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
