"""Digests of folders that llmopt did not write."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from llmopt import artifact
from llmopt.artifact import digests
from llmopt.errors import RequestError


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    (folder / "config.json").write_text("{}")
    return folder


def test_foreign_model_is_hashed_once_per_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "model")
    first = artifact.open_artifact("model", folder)
    assert artifact.known_digest(folder) == first.digest
    monkeypatch.setattr(digests, "describe_files", lambda _: pytest.fail("hashed again"))
    assert artifact.open_artifact("model", folder) == first
    monkeypatch.undo()
    (folder / "config.json").write_text('{"a": 1}')
    assert artifact.open_artifact("model", folder).digest != first.digest


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    (folder / "more").symlink_to(folder)
    (folder / "loop").symlink_to("loop")
    (folder / "again.json").symlink_to("config.json")
    (folder / ".hidden").write_text("x")
    names = [path.name for path in artifact.content_files(folder)]
    assert names == ["again.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "x.gguf", "merges.txt", "sub/chat.jinja"]
)
def test_what_cannot_be_read_like_a_file_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    odd = folder / name
    odd.parent.mkdir(parents=True)
    monkeypatch.chdir(odd.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        for make, says in (
            (lambda: os.mkfifo(odd), "is a pipe"),
            (lambda: server.bind(odd.name), "is a socket"),
            (lambda: odd.symlink_to("/dev/zero"), "is a device"),
            (lambda: odd.symlink_to(odd.name), "is a link that leads nowhere"),
            (lambda: odd.symlink_to("gone"), "is a link that leads nowhere"),
        ):
            make()
            with pytest.raises(RequestError, match=says):
                artifact.check_regular(folder)
            odd.unlink()
    odd.write_text("x")
    os.mkfifo(folder / "notes.txt")  # which nobody opens
    artifact.check_regular(folder)
