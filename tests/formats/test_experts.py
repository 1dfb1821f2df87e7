"""Experts taken apart: in files, and in transformers' models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from llmopt.errors import RequestError
from llmopt.formats.fused import unfused
from llmopt.formats.tensor_header import TensorHeader
from llmopt.specs.families import FAMILIES, ExpertsSpec
from tests import models


@pytest.mark.parametrize(
    "family", [name for name in models.FAMILY_SETTINGS if FAMILIES[name].experts]
)
def test_plain_experts_compute_the_same(family: str) -> None:
    model = models.build(family)
    with torch.no_grad():
        expected = model(models.tokens()).logits
        found = models.with_plain_experts(model)(models.tokens()).logits
    assert any(name.endswith("experts.3") for name, _ in model.named_modules())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def header(name: str, shape: tuple[int, ...], start: int = 0) -> TensorHeader:
    size = 4 * math.prod(shape)
    return TensorHeader(name, "F32", shape, Path("x.safetensors"), start, start + size)


def test_fused_experts_are_ranges_of_bytes() -> None:
    tensors = [
        header("a.experts.gate_up_proj", (2, 6, 4), 100),
        header("a.experts.down_proj", (2, 4, 3)),
        header("a.gate.weight", (2, 4)),
    ]
    found = unfused({each.name: each for each in tensors}, ExpertsSpec())
    assert len(found) == 7
    up = found["a.experts.1.up_proj.weight"]
    assert (up.shape, up.start, up.end) == ((3, 4), 100 + 3 * 48, 100 + 4 * 48)
    down = found["a.experts.1.down_proj.weight"]
    assert (down.shape, down.start, down.end) == ((4, 3), 48, 96)
    assert found["a.gate.weight"] == tensors[2]


def test_an_expert_is_not_stored_in_both_ways() -> None:
    both = [
        header("a.experts.down_proj", (2, 4, 3)),
        header("a.experts.1.down_proj.weight", (4, 3)),
    ]
    for order in (both, both[::-1]):
        with pytest.raises(RequestError, match=r"a\.experts\.1\.down_proj\.weight twice"):
            unfused({each.name: each for each in order}, ExpertsSpec())


def test_halves_must_be_whole() -> None:
    with pytest.raises(RequestError, match="odd"):
        unfused({(name := "a.experts.gate_up_proj"): header(name, (2, 5, 4))}, ExpertsSpec())
