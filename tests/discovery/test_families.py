"""What a run of a tiny model shows is what the data says."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from llmopt.discovery import __main__ as child
from llmopt.discovery.families import discover
from llmopt.errors import LlmoptError
from llmopt.specs import families
from scripts.discover_families import discovered
from scripts.tiny_models import config_of


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that a test looks at are forgotten again."""
    known = families._file()
    copy = {**known, "families": {**known["families"]}}
    monkeypatch.setattr(families, "_file", lambda: copy)
    families._family.cache_clear()


@pytest.mark.parametrize(
    "model_type", ["llama", "gpt2", "falcon", "gemma3", "qwen2_moe", "gpt_oss", "gemma4_text"]
)
def test_the_data_is_what_a_run_shows(model_type: str) -> None:
    wanted = {model_type: families.data_of(model_type)}
    found = discovered(model_type)
    assert json.loads(json.dumps(found)) == wanted


def test_what_cannot_be_walked_says_why() -> None:
    with pytest.raises((LlmoptError, RuntimeError), match=r"expanded size|hidden states"):
        discover({**config_of("gemma3n_text")})


@pytest.mark.parametrize("config", [{"model_type": "lama"}, {}])
def test_the_child_answers_whatever_it_is_given(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(config)))
    child.main()
    assert "has no such type" in json.loads(capsys.readouterr().out)["error"]
