"""Shapes that a format cannot take: what is proposed gets through, whatever the format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llmopt import planner
from llmopt.errors import RecipeError
from llmopt.recipe import from_data
from tests import models
from tests.cli.conftest import Llmopt, llmopt  # noqa: F401

#: format, grid, activations, group size; whether it goes through without a word
SETTINGS: list[tuple[str, str, str, int, bool]] = [
    ("gptq", "int4", "none", 128, False),
    ("gptq", "int8", "none", -1, False),
    ("gptq", "int3", "none", 32, False),
    ("gptq_v2", "int4", "none", 128, False),
    ("awq", "int4", "none", 128, False),
    ("awq", "int4", "none", 16, False),
    ("compressed-tensors", "int4", "none", 128, False),
    ("compressed-tensors", "int8", "none", -1, False),
    ("compressed-tensors", "int8", "int8", -1, True),
    ("compressed-tensors", "int8", "int8", 128, False),
    ("compressed-tensors", "fp8", "none", -1, True),
    ("compressed-tensors", "fp8", "fp8", -1, True),
    ("compressed-tensors", "fp8", "none", 128, False),
    ("bitsandbytes-nf4", "nf4", "none", 64, False),
    ("bitsandbytes-nf4", "nf4", "none", 128, False),
    ("bitsandbytes-int8", "int8", "none", -1, True),
    ("bitsandbytes-int8", "int8", "none", 128, False),
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose MLP is 344 wide: 8 times 43."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    models.save_with_tokenizer(folder, "qwen3", intermediate_size=344)
    return folder


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_hint_gets_through(llmopt: Llmopt, odd: Path, settings: Any) -> None:  # noqa: F811
    format_id, grid, activations, group_size, fits = settings
    options = {"--format": format_id, "--grid": grid, "--group-size": str(group_size)}
    fixed = ("quantize", odd, "-o", "out", "--method", "rtn", "--gate", "none")

    def run(*more: str) -> Any:
        return llmopt(*fixed, "--activations", activations, *sum(options.items(), ()), *more)

    done = run()
    assert (done.code == 0) is fits, done.err
    if not fits:
        (hint,) = re.findall(r"hint: (.*?)(?=error:|$)", " ".join(done.err.split()))
        options |= dict(re.findall(r"(--group-size) (-?\d+)", hint))
        skips = [word for each in re.findall(r'--skip "(.*?)"', hint) for word in ("--skip", each)]
        done = run(*skips)
    assert done.code == 0, done.err


def refusal(odd: Path, out: Path, **step: Any) -> RecipeError:
    data = {"version": 1, "model": str(odd), "steps": [{"id": "q", "quantize": step}]}
    with pytest.raises(RecipeError) as error:
        planner.plan(*from_data(data), out)
    return error.value


def test_hints_in_a_recipe(odd: Path, tmp_path: Path) -> None:
    error = refusal(odd, tmp_path, method="rtn")
    assert error.hint == (
        "group_size: 64, and leave what does not fit: overrides: "
        '[{match: "*.down_proj", skip: true}, {match: "*.gate_proj", skip: true}, '
        '{match: "*.up_proj", skip: true}]'
    )
    overridden = [{"match": "*.down_proj", "group_size": 128}, {"match": "*e_proj", "skip": True}]
    overridden.append({"match": "*up_proj", "skip": True})
    error = refusal(
        odd, tmp_path, method="rtn", group_size=32, format="compressed-tensors", grid="fp8",
        overrides=overridden,
    )  # fmt: skip
    assert error.key == "steps[0].quantize.overrides[0].group_size"
    assert error.hint == "group_size: -1 fits all"


def test_where_no_linear_packs_another_format_is_named(tmp_path: Path) -> None:
    models.save_with_tokenizer(
        tmp_path / "m", "qwen3", hidden_size=72, intermediate_size=344, head_dim=36
    )
    error = refusal(tmp_path / "m", tmp_path / "out", method="rtn", group_size=-1)
    assert error.hint == "fp8, and int8 with int8 activations, in compressed-tensors take any width"
