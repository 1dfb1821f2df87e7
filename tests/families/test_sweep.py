"""Every type in the table of docs/families.md does what its row says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmopt.specs.families import FAMILIES
from scripts.family_table import PATH, Row, rows_in
from scripts.tiny_models import types
from tests.families import works

#: as logits differ that are computed in float32 in another order
CLOSE = 1e-4
ROWS = rows_in(PATH.read_text("utf-8"))


@pytest.mark.slow(part="families")
@pytest.mark.parametrize("row", ROWS, ids=[row.type for row in ROWS])
def test_a_type_does_what_its_row_says(row: Row, tmp_path: Path) -> None:
    model = tmp_path / "model"
    works.save(row.type, model)
    share, rest = works.share(model)
    assert share == pytest.approx(row.share, abs=6e-4)
    assert rest == row.rest
    assert works.loads(model) < CLOSE
    for name in row.works:
        assert getattr(works, name)(model, tmp_path) < CLOSE, name


def test_every_type_has_a_row_or_a_reason() -> None:
    reasons = re.findall(r"^- `([^`]+)`: .+", PATH.read_text("utf-8"), re.MULTILINE)
    assert sorted([row.type for row in ROWS] + reasons) == types()
    assert {row.type for row in ROWS} <= set(FAMILIES)


def test_as_many_types_work_as_is_promised() -> None:
    assert sum({"rtn", "gptq"} <= set(row.works) for row in ROWS) >= 130
    assert sum("awq" in row.works for row in ROWS) >= 60
    assert sum(row.share >= 0.97 or bool(row.rest) for row in ROWS) >= 150


def test_the_types_that_users_arrive_with_work() -> None:
    wanted = """
        qwen3_5 qwen3_5_text qwen3_5_moe gemma4 gemma4_text gpt_oss deepseek_v3 glm4 glm4_moe
        mistral ministral3 llama4 llama4_text olmo olmo2 olmo3 granite granitemoehybrid smollm3
        lfm2 lfm2_moe
    """
    done = {row.type for row in ROWS if {"rtn", "gptq"} <= set(row.works)}
    assert set(wanted.split()) <= done
