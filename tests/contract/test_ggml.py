"""What every ggml type must do: bytes of the right size, values that stay, pieces that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.grids import ggml
from llmopt.grids.ggml import block_grid
from llmopt.specs.ggml import GGML_TYPES

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
