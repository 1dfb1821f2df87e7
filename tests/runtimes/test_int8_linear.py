"""Integer products: the same function as rounded activations times the decoded weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llmopt import processor
from llmopt.grids import integer
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.runtimes.torch import int8, load, loading
from llmopt.runtimes.torch.activations import round_tokens, token_levels
from llmopt.runtimes.torch.int8 import Int8Linear, fits_int8
from llmopt.runtimes.torch.linear import KernelSwitch, QuantizedLinear
from tests import models
from tests.verbs.conftest import make as make_model
from tests.verbs.conftest import quantized

__all__ = ["make_model"]

needs_kernel = pytest.mark.skipif(
    not int8.kernel_is_exact(), reason="this CPU has no exact integer product"
)


def make(rows: int = 40, cols: int = 96) -> QuantizedTensor:
    """Any codes, and scales of both signs."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (rows, cols), generator=draw).to(torch.uint8)
    scale = (torch.randn(rows, 1, generator=draw) * 1e-3).half().float()
    zero = torch.full((rows, 1), 128, dtype=torch.int32)
    params = AffineParams(bits=8, group_size=-1, symmetric=True, scale=scale, zero=zero)
    return QuantizedTensor(grid="int8", codes=codes, params=params, activations="int8")


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grid", ["int8", "fp8"])
def test_a_tokens_extreme_gets_the_largest_level(grid: str) -> None:
    x = inputs(2, 5, 32)
    levels, scale = token_levels(x, grid)
    sign = x.gather(-1, x.abs().argmax(-1, keepdim=True)).sign()
    found = (levels * sign).amax(-1, keepdim=True)
    ends = {"int8": torch.where(sign > 0, 127.0, 128.0), "fp8": torch.full_like(sign, 448.0)}
    assert torch.equal(found, ends[grid])
    assert torch.allclose(levels * scale, x, rtol=0.07, atol=float(scale.max()))
    assert torch.equal(round_tokens(x, grid), levels * scale)
    assert torch.equal(round_tokens(x, grid)[1, 3], round_tokens(x[1, 3], grid))
    assert not round_tokens(torch.zeros(1, 8), grid).any()


@needs_kernel
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_rounded_activations(dtype: torch.dtype, bias: bool) -> None:
    tensor, x = make(), inputs(2, 3, 96).to(dtype)
    offsets = torch.ones(40) if bias else None
    layer = Int8Linear(tensor, offsets)
    levels, scale = token_levels(x, "int8")
    weight = integer.decode(tensor.codes, tensor.params)
    exact = (levels.double() * scale.double()) @ weight.double().T
    exact = exact if offsets is None else exact + offsets
    found = layer(x)
    assert found.dtype == dtype
    assert found.shape == (2, 3, 40)
    error = (found.double() - exact).norm() / exact.norm()
    assert error < (1e-6 if dtype == torch.float32 else 4e-3)


@needs_kernel
def test_a_tokens_product_does_not_depend_on_its_neighbours() -> None:
    layer, x = Int8Linear(make(), None), inputs(7, 96)
    x[3] *= 1000
    assert torch.equal(torch.cat([layer(row[None]) for row in x]), layer(x))


@needs_kernel
def test_the_layer_without_a_kernel_computes_the_same() -> None:
    tensor, x = make(), inputs(4, 96)
    slow = QuantizedLinear(tensor, None, dtype=torch.float32, switch=KernelSwitch())(x)
    assert torch.allclose(Int8Linear(tensor, None)(x), slow, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        F.linear(x, integer.decode(tensor.codes, tensor.params)), slow, rtol=1e-4, atol=1e-5
    )


@needs_kernel
def test_memory_is_a_byte_a_weight() -> None:
    tensors = Int8Linear(make(64, 256), None).tensors()
    assert 64 * 256 <= sum(tensor.nbytes for tensor in tensors) < 1.1 * 64 * 256


def changed(**params: object) -> QuantizedTensor:
    return replace(make(), params=replace(make().params, **params))


@pytest.mark.parametrize(
    "tensor",
    [
        replace(make(), activations=None),
        replace(make(), grid="fp8"),
        changed(zero=torch.full((40, 1), 127, dtype=torch.int32)),
        changed(scale=torch.ones(40, 2), zero=torch.full((40, 2), 128, dtype=torch.int32)),
    ],
)
def test_other_tensors_do_not_fit(tensor: QuantizedTensor) -> None:
    assert not fits_int8(tensor)


def test_a_cpu_whose_sums_saturate_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(levels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        pairs = ((levels + 128).unsqueeze(1) * weight).unflatten(-1, (-1, 2)).sum(-1)
        return (pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * weight.sum(-1)).int()

    int8.kernel_is_exact.cache_clear()
    monkeypatch.setattr(processor, "fast_int8", lambda: True)
    monkeypatch.setattr(int8, "_product", saturating)
    assert not fits_int8(make())
    int8.kernel_is_exact.cache_clear()


@needs_kernel
def test_a_cpu_whose_product_is_slow_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(processor, "fast_int8", lambda fast=fast: fast)
        assert fits_int8(make()) == fast


@needs_kernel
def test_sums_that_an_int32_may_not_hold_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "fast_int8", lambda: True)
    assert fits_int8(make(1, 2**17 - 1))
    assert not fits_int8(make(1, 2**17))


@needs_kernel
def test_an_artifact_runs_in_integers_and_gives_what_its_emulation_gives(
    make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "fast_int8", lambda: True)
    artifact = quantized(
        tmp_path, make_model("llama"), method="rtn", grid="int8", group_size=-1,
        format="compressed-tensors", activations="int8",
    )  # fmt: skip
    engine = load(artifact.path, dtype="float32")
    kinds = [type(module).__name__ for module in engine._model.modules()]
    assert kinds.count("Int8Linear") == 14
    assert "QuantizedLinear" not in kinds
    tokens = models.tokens(2, 12)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "fits_int8", lambda _: False)
        emulated = load(artifact.path, dtype="float32")
    found, expected = engine.logits(tokens), emulated.logits(tokens)
    # a last digit can put an activation that lies between two levels on either of them
    assert (found - expected).norm() < 0.02 * expected.norm()
    first = next(iter(engine.generate(tokens[0].tolist(), 1, ignore_end=True)))
    assert first == int(engine.logits(tokens[:1])[0, -1].argmax())
    assert engine.weight_bytes < 1.1 * emulated.weight_bytes
