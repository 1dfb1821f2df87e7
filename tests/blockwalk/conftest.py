"""A trivial quantizer and what tests of the walk share."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from llmopt.blockwalk import Inlet, LiveBlock, Pass, Record, Sink, walk
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gptq import Codec
from llmopt.formats.shards import ShardWriter
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.linalg import InputMoments, InputStatistics
from tests import models

#: what tests of the walk look at
EVERYTHING = InputMoments(hessian=True, mean_abs=True)


def rounded(weight: torch.Tensor, importance: torch.Tensor | None = None) -> QuantizedTensor:
    """Plain 4-bit rounding in groups of 32; scales shrink with `importance`, if there is any."""
    rows, cols = weight.shape
    groups = weight.reshape(rows, cols // 32, 32)
    scale = groups.abs().amax(dim=-1) / 7
    if importance is not None:
        mass = importance.reshape(1, -1, 32).mean(dim=-1)
        scale = scale / (1 + mass / (mass.sum() + 1))
    scale = scale.half().float()
    codes = (groups / scale.unsqueeze(-1)).round().add(8).clamp(0, 15).to(torch.uint8)
    params = AffineParams(
        bits=4,
        group_size=32,
        symmetric=True,
        scale=scale,
        zero=torch.full(scale.shape, 8, dtype=torch.int32),
    )
    return QuantizedTensor(grid="int4", codes=codes.reshape(rows, cols), params=params)


class EachInlet(ABC):
    """A pass that does the same to every inlet of every block."""

    changes = True

    def __init__(self, *, sequential: bool = False) -> None:
        self.sequential = sequential

    def apply(self, block: LiveBlock) -> None:
        for inlet in block.inlets(EVERYTHING, sequential=self.sequential):
            self.visit(inlet)

    @abstractmethod
    def visit(self, inlet: Inlet) -> None:
        """What is done to one."""


class Watch(EachInlet):
    """Changes nothing; notes what it sees."""

    def __init__(self, *, sequential: bool = False, changes: bool = False) -> None:
        super().__init__(sequential=sequential)
        self.changes = changes
        self.seen: dict[tuple[str, ...], InputStatistics | None] = {}

    def visit(self, inlet: Inlet) -> None:
        self.seen[inlet.names] = inlet.statistics


class Round(EachInlet):
    """Rounds every linear but those whose name contains one of `skip`; notes what it sees."""

    def __init__(
        self, *, sequential: bool = False, skip: Iterable[str] = (), weighed: bool = True
    ) -> None:
        super().__init__(sequential=sequential)
        self.skip, self.weighed = tuple(skip), weighed
        self.seen: dict[tuple[str, ...], InputStatistics | None] = {}

    def visit(self, inlet: Inlet) -> None:
        importance = None
        self.seen[inlet.names] = inlet.statistics
        if inlet.statistics is not None and self.weighed:
            importance = inlet.statistics.diagonal + inlet.statistics.mean_abs
        for name in inlet.names:
            if not any(part in name for part in self.skip):
                weight = inlet.weight(name)
                error = float(weight.norm())
                inlet.replace(name, rounded(weight, importance), {"norm": error})


class Halve(EachInlet):
    """Halves every weight, as a plain tensor."""

    def visit(self, inlet: Inlet) -> None:
        for name in inlet.names:
            inlet.replace(name, inlet.weight(name) * 0.5)


def run(
    model: Path, work: Path, *passes: Pass, tokens: torch.Tensor | None, **options: Any
) -> dict[str, Record]:
    """Walk over `model` with the state in `work`; the checkpoint ends up in work/out."""
    writer = ShardWriter(work / "parts")
    records = walk(
        Checkpoint.open(model),
        tokens,
        passes,
        Sink(writer, Codec()),
        work / "state",
        **{"batch_size": 2, **options},
    )
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    writer.finalize(out)
    return records


def calibration() -> torch.Tensor:
    """Five sequences: with batches of two, the last batch is smaller."""
    return models.tokens(5, 12)
