"""Predicted peak memory and disk of a step, from shapes alone. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.model.footprint import Footprint
from llmopt.step import Text

#: resident memory of Python with torch and transformers loaded, before any model (measured)
_LIBRARIES = 480 << 20
#: what blockwalk.shortcuts keeps at most: in bytes of the activations, and in any case
_SHARE, _LITTLE = 2, 256 << 20


def quantize_footprint(
    contents: Contents,
    changes: Sequence[Change],
    calibration: Text | None,
    batch_size: int,
) -> Footprint:
    """One block in float32, the activations, and the largest Hessian with its factor.

    Experts' Hessians are collected together, up to the size of the block.
    """
    naming = contents.naming
    blocks: dict[int | None, int] = defaultdict(int)
    outside = 0
    for name, tensor in contents.tensors.items():
        size, index = math.prod(tensor.shape) * 4, naming.block_of(name)
        blocks[index] += size
        outside = max(outside, size if index is None else 0)
    block = max((size for index, size in blocks.items() if index is not None), default=0)
    written = sum(f.bytes for f in changes)
    if calibration is None:
        return Footprint(_LIBRARIES + 2 * max(block, outside), written * 2)
    hidden = _hidden_size(contents.config)
    activations = calibration.count * calibration.length * hidden * 4
    known = _known(contents, calibration.count * calibration.length * 4, hidden)
    widest = max((f.shape[1] for f in changes if f.quantized), default=0)
    batch = batch_size * calibration.length * max(widest, hidden) * 4 * 6
    hessian = _hessian(widest) + (block if any(naming.experts) else 0)
    memory = _LIBRARIES + max(2 * block + hessian, outside) + activations + known + batch
    return Footprint(memory, written * 2 + activations)


def _hessian(cols: int) -> int:
    """A Hessian and its factor, which share a square: llmopt.linalg says how.

    Up to 2048 columns there are three squares more; above, as many of blocks, and 512 rows four
    times while columns are put in another order.
    """
    block = min(cols, 2048)
    rows = 4 * 512 * cols if cols > block else 0
    return 4 * (cols * cols + 3 * block * block + rows)


def convert_footprint(contents: Contents, changes: Sequence[Change]) -> Footprint:
    """The largest linear in float32 with copies, or a block's results, whichever is more."""
    blocks: dict[int | None, int] = defaultdict(int)
    for change in changes:
        blocks[contents.naming.block_of(change.name)] += change.bytes
    largest = max((math.prod(change.shape) for change in changes if change.why), default=0)
    memory = _LIBRARIES + 5 * 4 * largest + 2 * max(blocks.values(), default=0)
    return Footprint(memory, 2 * sum(change.bytes for change in changes))


def allocate_footprint(
    contents: Contents, changes: Sequence[Change], calibration: Text, batch_size: int
) -> Footprint:
    """A quantize step's, a graph of one block for autograd, logits; every option's weights on disk.

    On disk are the inputs of all blocks, and float16 weights of the options: about half of them,
    those on their hulls.
    """
    quantize = quantize_footprint(contents, changes, calibration, batch_size)
    hidden = _hidden_size(contents.config)
    widest = max((max(f.shape) for f in changes if f.quantized), default=0)
    graph = batch_size * calibration.length * max(widest, hidden) * 4 * 24
    logits = calibration.length * int(contents.config.get("vocab_size", 0)) * 4 * 6
    head = hidden * int(contents.config.get("vocab_size", 0)) * 4
    activations = calibration.count * calibration.length * hidden * 4
    kept = sum(math.prod(f.shape) * len(f.options) for f in changes)
    disk = activations * contents.naming.block_count + kept
    return Footprint(quantize.memory_bytes + graph + logits + head, disk)


def bench_footprint(
    contents: Contents, models: int, length: int, *, speed: bool, keeps: bool
) -> Footprint:
    """Two models in float32 at a time, and the logits of one window from both.

    `length` is that of a window. With `speed`, afterwards: one model in a process of its own, which
    has the libraries again. With `keeps` it leaves results.
    """
    weights = contents.weight_count * 4
    logits = length * int(contents.config.get("vocab_size", 0)) * 4
    memory = _LIBRARIES + min(models, 2) * weights + 6 * logits
    return Footprint(max(memory, (2 * _LIBRARIES + weights) * speed), keeps << 20)


def _known(contents: Contents, column: int, hidden: int) -> int:
    """Bytes of inputs that blockwalk.shortcuts keeps, where it takes all that it may.

    column: those of one channel's activations.
    """
    most = max(_SHARE * hidden * column, _LITTLE)
    inlets = contents.naming.linears(0)
    ends = {names[0].rpartition(".")[0]: names[0] for names in inlets if len(names) == 1}
    kept = 0
    for name in ends.values():
        shape = contents.tensors[f"{name}.weight"].shape
        size = shape[0 if contents.family.conv1d else 1] * column
        kept += size if kept + size <= most else 0
    return kept


def _hidden_size(config: Mapping[str, object]) -> int:
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(size := config.get(name), int):
            return size
    text = config.get("text_config")
    return int(text["hidden_size"]) if isinstance(text, dict) else 0
