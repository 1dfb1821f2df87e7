"""bitsandbytes artifacts end to end, Conv1D included, and what the plan refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from tests.verbs.conftest import difference, quantized

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"grid": "nf4", "group_size": 64, "format": "bitsandbytes-nf4"},
    "int8": {"grid": "int8", "group_size": -1, "format": "bitsandbytes-int8"},
}
WIDE = {"llama": {"intermediate_size": 128}, "gpt2": {}}


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_end_to_end(make: Any, tmp_path: Path, family: str, kind: str, method: str) -> None:
    model = make(family, **WIDE[family])
    artifact = quantized(tmp_path, model, method=method, **KINDS[kind])
    checkpoint, contents = Checkpoint.open(artifact.path), read_contents(artifact.path)
    assert contents.format == f"bitsandbytes-{kind}"
    assert {layout.grid for layout in checkpoint.layers.values()} == {kind}
    original = Checkpoint.open(model)
    for module in checkpoint.layers:
        weight, before = checkpoint.weight(module), original.weight(module)
        assert contents.tensors[f"{module}.weight"].shape == tuple(weight.shape)
        lost = float((weight - before).norm() / before.norm())
        assert 0 < lost < (0.2 if kind == "nf4" else 0.02)
    assert 0 < difference(model, artifact.path) < (0.7 if kind == "nf4" else 0.07)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (KINDS["nf4"] | {"group_size": 128}, "no groups of 128"),
        (KINDS["nf4"] | {"grid": "int4"}, "nf4"),
        (KINDS["nf4"], "group size 64 does not divide the 96 inputs"),
        (KINDS["int8"] | {"group_size": 32}, "no groups of 32"),
        (KINDS["int8"] | {"symmetric": False}, "symmetric"),
        (KINDS["int8"] | {"activations": "int8"}, "activations"),
    ],
)
def test_the_plan_refuses(
    make: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        quantized(tmp_path, make("llama"), method="rtn", **settings)
    assert not (tmp_path / "out" / "q").exists()
