"""A tokenizer that has more ids than the model has rows: refused before work, with both numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models
from tests.cli.conftest import Llmopt

TEXT = "the quick brown fox jumps over the lazy dog " * 100
CALIBRATED = ("--calibration", "text.txt", "--sequences", 4, "--length", 32)
COMMANDS: dict[str, tuple[object, ...]] = {
    "calibration": ("quantize", "m", "-o", "out", "--group-size", 32, *CALIBRATED),
    "the gate's text": ("quantize", "m", "-o", "out", "--group-size", 32, "--method", "rtn"),
    "budget": ("quantize", "m", "-o", "out", "--target-bpw", 5, *CALIBRATED),
    "bench": ("bench", "m", "-o", "out"),
    "imatrix": ("convert", "m", "--to", "imatrix", "-o", "out.gguf", *CALIBRATED),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_refused(llmopt: Llmopt, tmp_path: Path, case: str) -> None:
    models.save_with_tokenizer(tmp_path / "m", "qwen3", vocab_size=80)  # of 96 tokens
    (tmp_path / "text.txt").write_text(TEXT)
    done = llmopt(*COMMANDS[case])
    assert done.code == 2, done.err
    assert "is outside the model's vocabulary of 80" in " ".join(done.err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "text.txt"]


def test_text_that_stays_within_the_rows_is_fine(llmopt: Llmopt, tmp_path: Path) -> None:
    models.save_with_tokenizer(tmp_path / "m", "qwen3", vocab_size=80)
    (tmp_path / "text.txt").write_text(TEXT.upper())
    options = ("--group-size", 32, *CALIBRATED, "--gate", "none", "--evaluation", "held.txt")
    (tmp_path / "held.txt").write_text("SPHINX OF BLACK QUARTZ " * 400)
    done = llmopt("quantize", "m", "-o", "out", *options)
    assert done.code == 0, done.err
