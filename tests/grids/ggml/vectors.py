"""What must hold of every type whose codes stand for vectors."""

from __future__ import annotations

import gguf
import torch
from torch import Tensor

from llmopt.grids.ggml import block_grid, decode, encode
from llmopt.grids.ggml.base import Fields, VectorGrid
from tests.grids.ggml.cases import draw, error_of, importance


def chosen(
    grid: VectorGrid, fields: Fields, blocks: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and values of blocks, chosen one group of columns after another."""
    groups = [slice(at, at + grid.vector) for at in range(0, blocks.shape[1], grid.vector)]
    found = [
        grid.choose(fields, index, blocks[:, columns], weights[:, columns])
        for index, columns in enumerate(groups)
    ]
    return torch.stack([codes for codes, _ in found], 1), torch.cat([v for _, v in found], 1)


def check_vector_pieces(type_id: str) -> None:
    """What is chosen is what a file then holds, and loses about as little as `best`."""
    grid: VectorGrid = block_grid(type_id)  # type: ignore[assignment]
    w, weight = torch.cat([draw("normal"), draw("zeros")]), importance()
    blocks = w.view(-1, 256)
    weights = weight.expand_as(w).reshape(-1, 256)
    fields = grid.fit(blocks, weights)
    assert {len(value) for value in fields.values()} == {len(blocks)}
    codes, values = chosen(grid, fields, blocks, weights)
    stored = decode(type_id, grid.pack(fields, codes).view(len(w), -1)).view_as(blocks)
    assert torch.equal(stored, values)
    best = decode(type_id, encode(type_id, w, weight)).view_as(blocks)
    assert error_of(stored, blocks, weights) <= 1.001 * error_of(best, blocks, weights)
    # codes of other weights: the fields fitted to them beat the fields they were chosen with
    codes, values = chosen(grid, fields, blocks * 1.5, weights)
    refitted = decode(type_id, grid.pack(grid.refit(blocks, codes, weights), codes))
    assert error_of(refitted, blocks, weights) < 0.95 * error_of(values, blocks, weights)


def check_signed_choice(type_id: str, *, even: bool, slack: float) -> None:
    """No code of the type is nearer, but for `slack` of the error where signs must be even."""
    grid: VectorGrid = block_grid(type_id)  # type: ignore[assignment]
    source = getattr(gguf.quants, type_id)
    source.init_grid()
    levels = torch.from_numpy(source.grid.reshape(source.grid_shape))
    signs = 1.0 - 2 * (torch.arange(256)[:, None] >> torch.arange(8) & 1)
    if even:
        signs = signs[signs.prod(1) > 0]
    blocks, weights = draw("normal")[:2].view(-1, 256), importance().view(-1, 256).repeat(2, 1)
    fields = grid.fit(blocks, weights)
    scales = grid.scales(fields)
    ours = best = 0.0
    for index in (0, 13, 31):
        columns = slice(8 * index, 8 * index + 8)
        x, weight = blocks[:, columns], weights[:, columns]
        _, values = grid.choose(fields, index, x, weight)
        ours += error_of(values, x, weight)
        for vector, importances, scale in zip(x, weight, scales[:, index], strict=True):
            target = (vector * signs).view(len(signs), -1, 1, levels.shape[1])
            share = importances.view(-1, 1, levels.shape[1])
            error = (share * (target - scale * levels).square()).sum(3)
            best += float(error.amin(2).sum(1).min())
    assert best * (1 - 1e-5) <= ours <= best * (1 + slack)


def check_metric(type_id: str) -> None:
    """Errors weighed together: clearly less is lost, with parity and values of the type."""
    grid: VectorGrid = block_grid(type_id)  # type: ignore[assignment]
    blocks, weights = draw("normal").view(-1, 256), importance().view(-1, 256).repeat(8, 1)
    fields = grid.fit(blocks, weights)
    distance = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    spread = torch.rand(8, generator=torch.Generator().manual_seed(3)) + 0.3
    metric = 0.5**distance * spread * spread[:, None]
    alone, alone_values = chosen(grid, fields, blocks, metric.diagonal().repeat(32, 32))
    codes, values = alone.clone(), alone_values.clone()
    for index in range(0, 32, 5):
        x = blocks[:, 8 * index : 8 * index + 8]
        found = grid.choose(fields, index, x, metric.diagonal(), metric)
        codes[:, index], values[:, 8 * index : 8 * index + 8] = found
        ours, theirs = (
            float(((v - x) @ metric * (v - x)).sum())
            for v in (found[1], alone_values[:, 8 * index : 8 * index + 8])
        )
        assert ours < 0.95 * theirs
        same = grid.choose(fields, index, x, metric.diagonal(), metric.diagonal().diag())
        assert error_of(same[1], x, metric.diagonal()) <= (1 + 1e-5) * error_of(
            alone_values[:, 8 * index : 8 * index + 8], x, metric.diagonal()
        )
    assert torch.equal(decode(type_id, grid.pack(fields, codes)), values)
