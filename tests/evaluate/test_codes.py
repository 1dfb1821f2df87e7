"""Codes that stand for their weights, and every way in which they can stop doing so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmopt.evaluate.codes import CodeError, code_error, weight_errors
from llmopt.formats import gptq
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.layout import layout_of
from llmopt.grids import integer
from llmopt.grids.base import AffineParams, GridOptions, QuantizedTensor
from tests import models


def weight() -> Tensor:
    """Rows and groups of different size, as trained weights have them."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(64, 1, generator=generator) + 0.5
    groups = (torch.rand(1, 8, generator=generator) + 0.5).repeat_interleave(32, 1)
    return torch.randn(64, 256, generator=generator) * spread * groups * 0.02


def rounded(bits: int, *, symmetric: bool = False) -> QuantizedTensor:
    options = GridOptions(
        grid=f"int{bits}", bits=bits, group_size=32, symmetric=symmetric, scale_search="minmax"
    )
    params = integer.fit(weight(), options)
    return QuantizedTensor(grid=options.grid, codes=integer.encode(weight(), params), params=params)


def params(change: Callable[[AffineParams], AffineParams]) -> Callable[..., QuantizedTensor]:
    return lambda tensor: replace(tensor, params=change(tensor.params))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rounding_shows_next_to_nothing(bits: int, symmetric: bool) -> None:
    error = code_error(weight(), rounded(bits, symmetric=symmetric))
    assert error.offset < 0.1
    assert error.gain < 0.07


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_zero_points_that_are_one_off_are_an_offset_of_one(bits: int) -> None:
    tensor = params(lambda p: replace(p, zero=p.zero + 1))(rounded(bits))
    assert code_error(weight(), tensor).offset == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("factor", "gain"), [(10.0, 0.9), (-1.0, 2.0), (1.25, 0.2)])
def test_scales_that_are_wrong_are_a_gain(factor: float, gain: float) -> None:
    tensor = params(lambda p: replace(p, scale=p.scale * factor))(rounded(4))
    assert code_error(weight(), tensor).gain == pytest.approx(gain, abs=0.05)


DAMAGE = {
    "scales of the next row": params(lambda p: replace(p, scale=p.scale.roll(1, 0))),
    "scales of the next group": params(lambda p: replace(p, scale=p.scale.roll(1, 1))),
    "codes of the next row": lambda t: replace(t, codes=t.codes.roll(1, 0)),
    "codes of the next column": lambda t: replace(t, codes=t.codes.roll(1, 1)),
    "all codes the same": lambda t: replace(t, codes=torch.full_like(t.codes, 3)),
}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", list(DAMAGE))
def test_parts_that_belong_elsewhere_are_a_gain(bits: int, kind: str) -> None:
    assert code_error(weight(), DAMAGE[kind](rounded(bits))).gain > 0.15


def test_a_group_index_only_moves_columns() -> None:
    tensor, order = rounded(4), torch.randperm(256, generator=torch.Generator().manual_seed(1))
    index = (torch.arange(256) // 32).to(torch.int32)[order]
    moved = replace(
        tensor, codes=tensor.codes[:, order], params=replace(tensor.params, group_index=index)
    )
    plain, indexed = code_error(weight(), tensor), code_error(weight()[:, order], moved)
    assert indexed.offset == pytest.approx(plain.offset)
    assert indexed.gain == pytest.approx(plain.gain)


def test_nothing_but_zeros_is_no_error() -> None:
    tensor = rounded(4, symmetric=True)
    tensor = replace(tensor, codes=torch.full_like(tensor.codes, 8))
    assert code_error(torch.zeros(64, 256), tensor) == CodeError(0.0, 0.0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpoints_are_held_to_each_other(family: str, tmp_path: Path) -> None:
    folder, stored = tmp_path / "base", tmp_path / "quantized"
    models.save(folder, family)
    base = Checkpoint.open(folder)
    assert list(weight_errors(base, base)) == []
    name = base.naming.linears(0)[-1][0]
    original = base.read(f"{name}.weight")
    original = original.T if family == "gpt2" else original
    options = GridOptions(grid="int4", bits=4, group_size=32, scale_search="minmax")
    params = integer.fit(original.contiguous(), options)
    codes = integer.encode(original.contiguous(), params)
    tensors = {key: base.read(key) for key in base.stored if key != f"{name}.weight"}
    tensor = QuantizedTensor(grid="int4", codes=codes, params=params)
    tensors |= {f"{name}.{key}": part for key, part in gptq.pack(tensor, "gptq").items()}
    stored.mkdir()
    save_file(tensors, stored / "model.safetensors")
    settings = gptq.quantization_config({name: layout_of(tensor)}, version="gptq")
    config = {**base.config, "quantization_config": settings}
    (stored / "config.json").write_text(json.dumps(config))
    (found,) = weight_errors(base, Checkpoint.open(stored))
    expected = code_error(original, tensor)
    assert found.final
    assert found.metrics == {"weights.offset": expected.offset, "weights.gain": expected.gain}
    assert expected.gain < 0.07
