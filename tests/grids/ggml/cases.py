"""The tensors on which encoders are compared with ggml's own, and what must hold of every type."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import gguf
import numpy as np
import torch
from torch import Tensor

from llmopt.grids.ggml import block_grid, decode, encode
from llmopt.grids.ggml.base import BlockLattice, ScalarGrid, Search
from llmopt.specs.ggml import GGML_TYPES
from tests.ggml_reference import Job, decoded, references

COLUMNS = 1024
#: what tensors are called here
TENSORS = ("normal", "heavy", "zeros", "outlier")


def draw(name: str) -> Tensor:
    """A weight [8, COLUMNS] of the named kind."""
    source = torch.Generator().manual_seed(TENSORS.index(name))
    w = torch.randn(8, COLUMNS, generator=source) * 0.02
    if name == "heavy":
        w /= torch.rand(w.shape, generator=source) + 0.05
    if name == "zeros":
        w[:, :256] = 0
        w[2, 300:340] = 0
        w[3] = 0
    if name == "outlier":
        w[1, 500], w[5, 20] = 3.0, -7.0
    return w


def importance() -> Tensor:
    """[COLUMNS], some columns a hundred times as important as others."""
    return torch.rand(COLUMNS, generator=torch.Generator().manual_seed(9)) ** 3 + 0.01


@dataclass(frozen=True, eq=False)
class Case:
    """A type on every tensor of TENSORS, eight rows of each: rows do not depend on each other.

    written: what ggml writes. read: what ggml reads of that.
    """

    type_id: str
    w: Tensor
    importance: Tensor | None
    written: Tensor
    read: Tensor

    @cache  # noqa: B019
    def ours(self, search: Search) -> Tensor:
        return encode(self.type_id, self.w, self.importance, search)

    @property
    def weights(self) -> Tensor:
        """What `best` weighs squared errors with: the importance, or ggml's stand-in for it."""
        if self.importance is not None:
            return self.importance.expand_as(self.w)
        blocks = self.w.view(-1, GGML_TYPES[self.type_id].block)
        squares = blocks.square()
        return (squares.mean(1, keepdim=True) + squares).sqrt().view(self.w.shape)


def rows_of(name: str) -> slice:
    """Where a Case has the named tensor."""
    start = 8 * TENSORS.index(name)
    return slice(start, start + 8)


@cache
def table(*types: str) -> dict[tuple[str, bool], Case]:
    """By type and whether importance is given."""
    w = torch.cat([draw(name) for name in TENSORS])
    jobs = {
        (type_id, weighted): Job(type_id, w, importance() if weighted else None)
        for type_id in types
        for weighted in (True, False)
        if weighted or GGML_TYPES[type_id].importance != "required"
    }
    written = references(list(jobs.values()))
    read = decoded([(job.type_id, data) for job, data in zip(jobs.values(), written, strict=True)])
    cases = [Case(*job, *data) for job, *data in zip(jobs.values(), written, read, strict=True)]
    return dict(zip(jobs, cases, strict=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def check_reference(case: Case, name: str) -> None:
    """Our encoder writes ggml's bytes."""
    ours, theirs = case.ours("reference")[rows_of(name)], case.written[rows_of(name)]
    assert torch.equal(ours, theirs), f"{int((ours != theirs).sum())} of {theirs.numel()} bytes"


def check_decode(case: Case) -> None:
    """Our decoder reads what libggml and the gguf package read."""
    kind = gguf.GGMLQuantizationType(GGML_TYPES[case.type_id].number)
    values = decode(case.type_id, case.written)
    assert same_bits(values, case.read)
    assert same_bits(values, torch.from_numpy(gguf.quants.dequantize(case.written.numpy(), kind)))


def check_any_bytes(type_id: str) -> None:
    """Whatever a block's bytes are, they decode to what the gguf package makes of them."""
    spec = GGML_TYPES[type_id]
    source = torch.Generator().manual_seed(0)
    data = torch.randint(256, (16, 4 * spec.nbytes), generator=source, dtype=torch.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(spec.number))
    ours = decode(type_id, data)
    assert torch.equal(ours.isnan(), torch.from_numpy(theirs).isnan())
    assert torch.equal(ours.nan_to_num(), torch.from_numpy(theirs).nan_to_num())


def check_best(case: Case, name: str) -> float:
    """The error of our search over that of ggml's."""
    rows = rows_of(name)
    values = decode(case.type_id, case.ours("best"))
    assert values.isfinite().all()
    ours, theirs = (
        error_of(found[rows], case.w[rows], case.weights[rows]) for found in (values, case.read)
    )
    assert ours <= theirs * (1 + 1e-6)
    return ours / theirs


def nearest(lattice: BlockLattice, blocks: Tensor) -> Tensor:
    """The codes of the lattice's values nearest to blocks [n, width], one candidate at a time."""
    codes, best = torch.zeros_like(blocks), torch.full_like(blocks, torch.inf)
    for code in range(lattice.top + 1):
        off = (value_of(lattice, torch.full_like(blocks, code)) - blocks).abs()
        codes, best = torch.where(off < best, float(code), codes), torch.minimum(off, best)
    return codes


def value_of(lattice: BlockLattice, codes: Tensor) -> Tensor:
    level = codes if lattice.levels is None else lattice.levels[codes.long()]
    return lattice.scale * level + lattice.offset


def check_pieces(type_id: str) -> None:
    """What a lattice says is what a file then holds, and fields for given codes lose least."""
    grid: ScalarGrid = block_grid(type_id)  # type: ignore[assignment]
    width = GGML_TYPES[type_id].block
    w, weight = torch.cat([draw("normal"), draw("zeros")]), importance()
    weight[320:352] = 1e-6  # columns that no input reached
    blocks = w.view(-1, width)
    weights = weight.expand_as(w).reshape(-1, width)
    fields = grid.fit(blocks, weights)
    assert {len(value) for value in fields.values()} == {len(blocks)}
    lattice = grid.lattice(fields)
    codes = nearest(lattice, blocks)
    stored = decode(type_id, grid.pack(fields, codes.to(torch.uint8)).view(len(w), -1))
    assert torch.equal(stored.view_as(blocks), value_of(lattice, codes))
    best = decode(type_id, encode(type_id, w, weight))
    assert error_of(stored.view_as(blocks), blocks, weights) <= 1.02 * error_of(
        best.view_as(blocks), blocks, weights
    )
    dead = slice(320, 352)
    unreached = (stored.view_as(w) - w)[:, dead].norm() / w[:, dead].norm()
    assert unreached < 1.2 * (stored.view_as(w) - w).norm() / w.norm()
    # codes of other weights: the fields fitted to them beat the fields they were chosen with
    moved = nearest(lattice, blocks * 2)
    before = error_of(value_of(lattice, moved), blocks, weights)
    after = value_of(grid.lattice(grid.refit(blocks, moved, weights)), moved)
    assert error_of(after, blocks, weights) < before


def error_of(values: Tensor, blocks: Tensor, weights: Tensor) -> float:
    return float((weights * (values - blocks).square()).double().sum())
