"""What cannot be done with some families is refused before work, in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmopt import planner
from llmopt.errors import RequestError
from llmopt.recipe import from_data
from tests.families import works


def planned(model: Path, **step: Any) -> None:
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(model.parent / "text.txt"), "sequences": 4, "length": 32}
        },
        "steps": [{"id": "s", "quantize": {"group_size": 32, "gate": [], **step}}],
    }  # fmt: skip
    planner.plan(*from_data(data), model.parent / "out")


def test_inputs_of_experts_in_one_tensor_are_not_rounded(tmp_path: Path) -> None:
    works.save("gpt_oss", tmp_path / "model")
    step: dict[str, Any] = {
        "method": "rtn", "grid": "int8", "activations": "int8", "format": "compressed-tensors",
        "group_size": -1,
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"mlp\.experts\.0\.down_proj is part of a tensor"):
        planned(tmp_path / "model", **step)
    planned(tmp_path / "model", **step, overrides=[{"match": "*.experts.*", "skip": True}])


def test_a_budget_needs_a_measure_of_all_linears(tmp_path: Path) -> None:
    works.save("gpt_oss", tmp_path / "model")
    with pytest.raises(RequestError, match="gpt_oss experts"):
        planned(tmp_path / "model", method="gptq", target_bpw=5.0, format="compressed-tensors")
