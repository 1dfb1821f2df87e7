"""Types that no data has are looked at by a child, which runs nothing that lies around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmopt.specs import discovered as asked
from llmopt.specs.discovered import discovered


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked._asked.cache_clear()


def test_an_unknown_type_is_asked_for_once_and_runs_nothing_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "transformers", "llmopt", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    found = discovered({"model_type": "lama"})
    assert found["error"].endswith("has no such type")
    monkeypatch.setattr(asked.subprocess, "Popen", None)
    assert discovered({"model_type": "lama", "dtype": "float16"}) == found
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "cache").exists()


def test_a_tiny_model_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOPT_DISCOVERING", "1")
    assert "other blocks" in discovered({"model_type": "lama"})["error"]


def test_a_child_that_takes_too_long_or_says_nothing_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asked, "_SECONDS", 0.01)
    assert "did not run" in discovered({"model_type": "lama"})["error"]
    monkeypatch.setattr(asked, "_SECONDS", 60)
    monkeypatch.setattr(asked.sys, "executable", "/bin/true")
    assert "does not run" in discovered({"model_type": "lamb"})["error"]


@pytest.mark.parametrize("kept", ["{", "", json.dumps({"families": {"lama": {"base": "x"}}})])
def test_what_was_found_is_read_again_unless_it_is_damaged(
    kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {"model_type": "lama"}
    folder = asked.cache_folder() / "families"
    folder.mkdir(parents=True)
    (folder / f"{asked._key(config)}.json").write_text(kept)
    monkeypatch.setattr(asked, "_asked", lambda _: {"error": "asked"})
    found = discovered(config)
    assert found == (json.loads(kept) if "base" in kept else {"error": "asked"})
