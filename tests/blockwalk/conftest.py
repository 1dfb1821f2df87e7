"""A trivial quantizer and what tests of the walk share."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmopt.blockwalk import Inlet, Operation, Sink, walk
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gptq import Codec
from llmopt.formats.safetensors import ShardWriter
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.linalg import InputStatistics
from tests import models


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


@dataclass
class Watch:
    """Changes nothing; notes what it sees."""

    needs_statistics: bool = True
    seen: dict[tuple[str, ...], InputStatistics | None] = field(default_factory=dict)

    def apply(self, inlet: Inlet) -> None:
        self.seen[inlet.names] = inlet.statistics


@dataclass
class Round:
    """Rounds every linear but those whose name contains one of `skip`."""

    needs_statistics: bool = True
    skip: Iterable[str] = ()

    def apply(self, inlet: Inlet) -> None:
        importance = None
        if inlet.statistics is not None:
            importance = inlet.statistics.diagonal + inlet.statistics.mean_abs
        for name in inlet.names:
            if not any(part in name for part in self.skip):
                weight = inlet.weight(name)
                error = float(weight.norm())
                inlet.replace(name, rounded(weight, importance), {"norm": error})


@dataclass
class Halve:
    """Halves every weight, as a plain tensor."""

    needs_statistics: bool = False

    def apply(self, inlet: Inlet) -> None:
        for name in inlet.names:
            inlet.replace(name, inlet.weight(name) * 0.5)


def run(
    model: Path, work: Path, *operations: Operation, tokens: torch.Tensor | None, **options: Any
) -> dict[str, Any]:
    """Walk over `model` with the state in `work`; the checkpoint ends up in work/out."""
    writer = ShardWriter(work / "parts")
    records = walk(
        Checkpoint.open(model),
        tokens,
        operations,
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
