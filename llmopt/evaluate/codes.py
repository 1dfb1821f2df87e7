"""How well stored codes stand for the weights that they come from, in steps of their own grid.

Rounding, and even a method that moves codes to make up for the rounding of others, leaves errors
that average out within a group and do not follow the codes, whatever the model is. Zero points,
scales or codes that belong elsewhere do not. This shows damage to a linear through which little
flows, which would hardly show in what the model says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmopt.artifact import Artifact
from llmopt.evaluate.probe import Reading, Subject
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.grids.base import Grid, Quantized
from llmopt.grids.ggml import BlockTensor
from llmopt.grids.levels import spacing
from llmopt.model.results import parse
from llmopt.report.manifest import Manifest
from llmopt.specs import GRIDS, load, lookup
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.metrics import Metrics

#: neighbours that are looked at together where a grid has no groups of its own
_BLOCK = 32


@dataclass(frozen=True)
class CodeError:
    """Of one linear, over the groups of weights that share a scale.

    offset: r.m.s. over groups of the mean error, in steps between neighbouring codes; 1 where all
    zero points are one off.
    gain: r.m.s. of how much a group's weights differ from 1 times what its codes say, by least
    squares, groups weighted by their energy; 0.9 where scales are 10 times too large.
    """

    offset: float
    gain: float


def code_error(weight: Tensor, tensor: Quantized) -> CodeError:
    """Compare codes with `weight` [out, in], the linear's weight in the model they come from."""
    if isinstance(tensor, BlockTensor):
        return _block_error(weight, tensor)
    params, (rows, cols) = tensor.params, tensor.codes.shape
    groups = params.scale.shape[1]
    index = params.group_index
    if index is None:
        index = torch.arange(cols, device=weight.device) // (cols // groups)
    index = index.to(torch.int64)
    grid: Grid = load(lookup(GRIDS, "grid", tensor.grid).module)
    decoded, step = grid.decode(tensor.codes, params), params.scale[:, index]
    error = (weight.float() - decoded) / step
    apart = torch.ones_like(error)
    if grid.levels is not None:
        apart = spacing(grid.levels)[tensor.codes.to(torch.int64)]
    code = decoded / step

    def in_groups(values: Tensor) -> Tensor:
        sums = torch.zeros(rows, groups, dtype=torch.float64, device=values.device)
        return sums.index_add_(1, index, values.double())

    mean = in_groups(error / apart) / torch.bincount(index, minlength=groups)
    energy = in_groups(code.square())
    follows = in_groups(error * code).square() / energy.clamp(min=1.0)
    return CodeError(
        offset=float(mean.square().mean().sqrt()),
        gain=float((follows.sum() / energy.sum().clamp(min=1.0)).sqrt()),
    )


def _block_error(weight: Tensor, tensor: BlockTensor) -> CodeError:
    """The same in groups of 32 neighbours, whose step is their range by the levels of their bits.

    ggml's types have scales for 16 to 32 weights, and some have no levels of single weights.
    """
    decoded = decode(tensor)
    values = decoded.view(len(decoded), -1, min(_BLOCK, decoded.shape[1]))
    levels = max(2 ** int(GGML_TYPES[tensor.grid].bits) - 1, 2)
    step = ((values.amax(-1) - values.amin(-1)) / levels).unsqueeze(-1)
    step = torch.where(step > 0, step, 1.0)
    error = (weight.float() - decoded).view(values.shape) / step
    code = values / step
    energy = code.square().sum(-1).double()
    follows = (error * code).sum(-1).double().square() / energy.clamp(min=1.0)
    return CodeError(
        offset=float(error.mean(-1).double().square().mean().sqrt()),
        gain=float((follows.sum() / energy.sum().clamp(min=1.0)).sqrt()),
    )


def measure(subject: Subject) -> Iterator[Reading]:
    """Hold the codes to the base's weights, where they were chosen for those."""
    if subject.base is not None and stand_for(subject.model, subject.base):
        base = Checkpoint.open(subject.base.path)
        yield from weight_errors(base, Checkpoint.open(subject.model.path))


def stand_for(model: Artifact, base: Artifact) -> bool:
    """Whether the codes of `model` were chosen for the weights of `base` as they are there.

    A transform before rounding has moved scales between the weights of the base.
    """
    made = parse(Manifest, model.manifest, f"the manifest of {model.name}")
    if any("folded" in entry.actions for entry in made.ledger):
        return False
    return base.digest in [parent["digest"] for parent in model.manifest.get("parents", ())]


def weight_errors(base: Checkpoint, quantized: Checkpoint) -> Iterator[Reading]:
    """The largest offset and gain of any quantized linear, one linear after the other.

    `base` is what was quantized, in the same names; a linear that it lacks is a RequestError.
    """
    errors: list[CodeError] = []
    for name in quantized.layers:
        errors.append(code_error(base.weight(name), quantized.read_layer(name)))
        yield Reading(len(errors), len(quantized.layers), partial(_largest, tuple(errors)))


def _largest(errors: tuple[CodeError, ...]) -> Metrics:
    return {
        "weights.offset": max(error.offset for error in errors),
        "weights.gain": max(error.gain for error in errors),
    }
