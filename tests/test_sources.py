"""Models by folder, by hub id, and the messages where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llmopt.errors import LlmoptError, RequestError
from llmopt.sources import DEMO_MODEL, resolve


def test_demo_and_folders(tmp_path: Path) -> None:
    assert resolve("demo").folder == DEMO_MODEL
    (tmp_path / "mine").mkdir()
    found = resolve(str(tmp_path / "mine"))
    assert (found.name, found.folder) == ("mine", tmp_path / "mine")


def test_a_hub_model_in_the_cache_is_found_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(DEMO_MODEL, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = resolve("someone/tiny", fetch=False)
    assert (found.name, found.revision) == ("someone/tiny", commit)
    assert (found.folder / "config.json").is_file()


def test_all_that_comes_with_a_hub_model_is_fetched_but_other_weights_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve("someone/tiny")
    patterns = asked["ignore_patterns"]
    assert isinstance(patterns, list)
    assert {"*.bin", "*.py", "*.gguf", "original/*", ".*"} <= set(patterns)
    assert "allow_patterns" not in asked


def test_plan_does_not_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match="not in the local hub cache") as refused:
        resolve("someone/absent", fetch=False)
    assert "hf download someone/absent" in str(refused.value.hint)


def test_no_network_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LlmoptError, match="HF_HUB_OFFLINE is set"):
        resolve("someone/absent")


@pytest.mark.parametrize("name", ["./gone", "/gone/model", "a/b/c", "spaces in it"])
def test_what_cannot_be_a_hub_id_is_not_looked_up(name: str) -> None:
    with pytest.raises(RequestError, match="no model folder"):
        resolve(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(RequestError, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))


def test_what_is_no_file_is_not_opened_and_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(RequestError, match="neither a folder nor a file"):
        resolve(str(tmp_path / "m.gguf"))
    with pytest.raises(RequestError, match="leads nowhere"):
        resolve(str(tmp_path / "loop.gguf"))
