"""What every ggml type must do: bytes of the right size, values that stay, pieces that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids import ggml
from llmopt.grids.ggml import Search, block_grid
from llmopt.specs.ggml import GGML_TYPES
from tests.grids.ggml.away import Away

BLOCK_TYPES = [type_id for type_id, spec in GGML_TYPES.items() if spec.block > 1]
COLS = 256


def weight(seed: int = 0) -> Tensor:
    return torch.randn(3, COLS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("type_id", GGML_TYPES)
def test_bytes_and_values(type_id: str) -> None:
    spec, w = GGML_TYPES[type_id], weight()
    data = ggml.encode(type_id, w, torch.ones(COLS))
    assert (data.dtype, data.shape) == (torch.uint8, (3, COLS // spec.block * spec.nbytes))
    values = ggml.decode(type_id, data)
    assert (values.dtype, values.shape) == (torch.float32, w.shape)
    # a bit more than what as many bits of a uniform grid lose on normal weights
    limit = max(1.6 * 2.0 ** -int(spec.bits - 0.5), 2e-3)
    assert float((values - w).square().mean().sqrt()) < limit
    assert torch.equal(data, ggml.encode(type_id, w.clone(), torch.ones(COLS)))


@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_pieces_pack_to_what_decodes_to_their_values(type_id: str) -> None:
    grid: Any = block_grid(type_id)
    blocks = weight(1).reshape(-1, GGML_TYPES[type_id].block)
    fields = grid.fit(blocks, torch.ones(1))
    if hasattr(grid, "vector"):
        codes, values = [], []
        for index, start in enumerate(range(0, blocks.shape[1], grid.vector)):
            part = blocks[:, start : start + grid.vector].contiguous()
            code, value = grid.choose(fields, index, part, torch.ones(grid.vector))
            codes.append(code)
            values.append(value)
        data, expected = grid.pack(fields, torch.stack(codes, 1)), torch.cat(values, 1)
    else:
        lattice = grid.lattice(fields)
        code = torch.full(blocks.shape, lattice.top // 2, dtype=torch.uint8)
        level = code.float() if lattice.levels is None else lattice.levels[code.long()]
        data, expected = grid.pack(fields, code), level * lattice.scale + lattice.offset
    found = ggml.decode(type_id, data)
    assert data.dtype == torch.uint8
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_what_cannot_be_encoded_is_refused(type_id: str) -> None:
    w = weight()
    w[1, 3] = float("nan")
    with pytest.raises(RequestError, match="NaN"):
        ggml.encode(type_id, w, torch.ones(COLS))
    with pytest.raises(RequestError, match="blocks of"):
        ggml.encode(type_id, torch.ones(2, GGML_TYPES[type_id].block + 8))


def relative(type_id: str, w: Tensor, importance: Tensor | None, search: Search = "best") -> float:
    """The error of w encoded, over w."""
    values = ggml.decode(type_id, ggml.encode(type_id, w, importance, search))
    return float((values.double() - w.double()).norm() / w.double().norm())


def refusal(type_id: str, w: Tensor, search: Search) -> str:
    """What encoding says; nothing where what comes out is as near as for weights around 1."""
    usual = relative(type_id, weight(), torch.ones(COLS), search)
    try:
        error = relative(type_id, w, torch.ones(COLS), search)
    except RequestError as refused:
        return refused.message
    return "" if error < 1.2 * usual else f"an error of {error}"


@pytest.mark.parametrize("search", ["reference", "best"])
@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_weights_are_held_or_refused_as_too_large(type_id: str, search: Search) -> None:
    powers = (*range(2, 10), 15, 20, 30, 37)
    said = [refusal(type_id, weight() * 10.0**power, search) for power in powers]
    held = said.count("")
    assert said == [""] * held + [f"the weights are too large for {type_id}"] * (12 - held)
    # the scales of one type reach as far as float32
    assert held == 12 if type_id == "MXFP4" else 1 <= held < 8


@pytest.mark.parametrize("type_id", ["Q4_0", "Q4_1", "Q8_0", "TQ2_0", "NVFP4", "F16"])
def test_one_weight_too_large_is_refused(type_id: str) -> None:
    w = weight()
    w[2, 77] = -1e8
    with pytest.raises(RequestError, match=f"the weights are too large for {type_id}"):
        ggml.encode(type_id, w)


@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_columns_that_no_input_reached_are_encoded_all_the_same(type_id: str) -> None:
    w = torch.randn(4, 512, generator=torch.Generator().manual_seed(5)) * 0.02
    for dead in (slice(64, 320), slice(64, 96)):
        importance = torch.ones(512)
        importance[dead] = 0
        values = ggml.decode(type_id, ggml.encode(type_id, w, importance))
        usual = ggml.decode(type_id, ggml.encode(type_id, w, torch.ones(512)))
        found, limit = (float((v - w)[:, dead].norm()) for v in (values, usual))
        assert found < 1.1 * limit


@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_importance_that_is_zero_everywhere_says_nothing(type_id: str) -> None:
    w, nothing = weight(), torch.zeros(COLS)
    if GGML_TYPES[type_id].importance == "required":
        assert relative(type_id, w, nothing) < 1.2 * relative(type_id, w, torch.ones(COLS))
    else:
        assert torch.equal(ggml.encode(type_id, w, nothing), ggml.encode(type_id, w))


@pytest.mark.parametrize("type_id", BLOCK_TYPES)
def test_rows_do_not_depend_on_each_other(type_id: str) -> None:
    cols = GGML_TYPES[type_id].block
    w = torch.randn(16, cols, generator=torch.Generator().manual_seed(0)) * 0.02
    importance = torch.rand(cols, generator=torch.Generator().manual_seed(1)) + 0.01
    alone = [ggml.encode(type_id, row[None], importance) for row in w]
    assert torch.equal(ggml.encode(type_id, w, importance), torch.cat(alone))


@pytest.mark.parametrize(
    ("type_id", "search"), [("IQ4_XS", "best"), ("IQ2_XS", "best"), ("Q4_K", "reference")]
)
def test_what_needs_the_cpu_is_done_there(type_id: str, search: Search) -> None:
    w, importance = weight().as_subclass(Away), torch.ones(COLS).as_subclass(Away)
    data = ggml.encode(type_id, w, importance, search)
    assert data.device.type == "meta"
    stored = ggml.encode(type_id, weight(), torch.ones(COLS), search)
    if type_id != "Q4_K":
        assert ggml.decode(type_id, stored.as_subclass(Away)).device.type == "meta"


def test_kinds_of_types() -> None:
    floats = [type_id for type_id, spec in GGML_TYPES.items() if spec.is_float]
    integers = [type_id for type_id, spec in GGML_TYPES.items() if spec.is_integer]
    assert floats == ["F32", "F16", "BF16"]
    assert integers == ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
