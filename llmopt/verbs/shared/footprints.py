"""Predicted peak memory and disk of a step, from shapes alone. No torch.

Each step's memory is the libraries and the most that is held at once, named term by term. It is
what only the process can give back (RssAnon): what it has mapped of files is not in it.
benchmarks/memory/predicted.py holds predictions against what is measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from llmopt import threads
from llmopt.formats.headers import LARGE_PART, SHARD_BYTES
from llmopt.model.change import Change
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.footprint import Footprint
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.walking import (
    FACTOR_BLOCK,
    HEAD_BYTES,
    HEAD_POSITIONS,
    HEAD_TOKENS,
    PERMUTED_ROWS,
    SAVE_EVERY,
    rows_at_once,
)
from llmopt.step import Text
from llmopt.verbs.shared.changes import linear_shape
from llmopt.verbs.shared.computing import Computing
from llmopt.verbs.shared.fitting import Way

#: Python with torch and transformers loaded, and a model without weights; text and its tokens
_LIBRARIES, _TEXT = 254 << 20, 69 << 20
#: bytes of a float32
_F32 = 4
#: bytes for each code that is compared (evaluate.codes)
_OF_CODES = 34
#: weights of which rows are rounded at once (verbs.shared.solving), and float32 copies of them
_AT_ONCE, _COPIES = 1 << 25, 2
#: copies of what a thread solves at once (methods.quantize), and what a visit takes beside for each
#: row, in columns: in groups of columns, and in blocks of GGUF
_ON_GRIDS, _IN_BLOCKS = (4.5, 3200), (5, 22528)
#: what is compiled for it, and what compiles it
_COMPILED = 36 << 20


#: how many Hessians of a block's inlets there are at once
Hessians = Literal["none", "in turn", "together"]


def quantize_footprint(
    contents: Contents,
    changes: Sequence[Change],
    calibration: Text | None,
    hessians: Hessians,
    way: Way,
    *,
    in_turn: bool,
    one_file: bool,
) -> Footprint:
    """A walk that rounds: a block, its results, activations, a Hessian that becomes its factor.

    in_turn: an inlet's statistics see what was changed before it. one_file: what is written is no
    checkpoint in shards.
    """
    walk = _Walk(contents, changes, calibration, way)
    parts = sum(change.bytes for change in changes if change.quantized)
    writing = parts + sum(c.bytes for c in changes) if one_file else _writing(contents, changes)
    if calibration is None:
        return Footprint(_LIBRARIES + walk.alone, writing)
    rounding = walk.rounding(hessians, in_turn=in_turn)
    memory = _LIBRARIES + _TEXT + max(rounding, walk.rounding_head)
    return Footprint(memory, max(writing, parts + walk.saved(in_turn=in_turn)))


def _writing(contents: Contents, changes: Sequence[Change]) -> int:
    """Disk while shards are made: all of them, and parts that are copied (formats.shards)."""
    written, parts = sum(change.bytes for change in changes), defaultdict[int | None, int](int)
    for change in changes:
        if change.actions != ("kept",):
            parts[contents.naming.block_of(change.name)] += change.bytes
    several = written > SHARD_BYTES
    linked = [size for size in parts.values() if several and LARGE_PART <= size <= SHARD_BYTES]
    return written + sum(parts.values()) - sum(linked)


def imatrix_footprint(
    contents: Contents, changes: Sequence[Change], calibration: Text, way: Way
) -> Footprint:
    """A walk that only looks: a block, and activations; the squares of inputs are small."""
    walk = _Walk(contents, changes, calibration, way)
    disk = 3 * walk.inputs * _F32 + walk.saved(in_turn=False)
    return Footprint(_LIBRARIES + _TEXT + walk.looking, disk)


def convert_footprint(contents: Contents, changes: Sequence[Change]) -> Footprint:
    """The largest linear in float32 with copies, and a block's results."""
    blocks: dict[int | None, int] = defaultdict(int)
    for change in changes:
        if change.why:
            blocks[contents.naming.block_of(change.name)] += change.bytes
    largest = max((math.prod(change.shape) for change in changes if change.why), default=0)
    memory = _LIBRARIES + 5 * _F32 * largest + max(blocks.values(), default=0)
    return Footprint(memory, _writing(contents, changes))


def allocate_footprint(
    contents: Contents, changes: Sequence[Change], calibration: Text, way: Way
) -> Footprint:
    """A quantize step's, a graph of one block for autograd, logits; every option's weights on disk.

    On disk are the inputs of all blocks, and float16 weights of the options: about half of them,
    those on their hulls.
    """
    walk, hidden = _Walk(contents, changes, calibration, way), hidden_size(contents.config)
    widest = max((max(f.shape) for f in changes if f.quantized), default=0)
    graph = way.batch_size * way.length * max(widest, hidden) * _F32 * 24
    logits = way.length * _vocabulary(contents) * _F32 * 6
    head = hidden * _vocabulary(contents) * _F32
    kept = sum(math.prod(f.shape) * len(f.options) for f in changes)
    disk = walk.activations * contents.naming.block_count + kept
    memory = _LIBRARIES + _TEXT + walk.rounding("together", in_turn=False) + graph + logits + head
    return Footprint(memory, disk)


def bench_footprint(
    models: Sequence[Contents], evaluation: Text, way: Way, *, speed: bool, keeps: bool
) -> Footprint:
    """Two models at a time, and the logits of one window from both; or a block of each in turn.

    With `speed`, afterwards: one model in a process of its own, which has the libraries again. With
    `keeps` it leaves results. Codes are held to what they were chosen for a linear at a time.
    """
    held = sorted(map(_loaded, models))
    vocabulary = max(map(_vocabulary, models))
    coded = max((math.prod(t.shape) for each in models for t in _coded(each)), default=0)
    if way.arrangement.whole_models:
        evaluating, disk = sum(held[-2:]) + 4 * way.length * vocabulary * _F32, 0
    else:
        evaluating, disk = _in_lockstep(models, evaluation, way)
    memory = _LIBRARIES + _TEXT + max(evaluating, coded * _OF_CODES)
    alone = 2 * _LIBRARIES + held[-1]
    return Footprint(max(memory, alone * speed), disk + 2048 * len(models) * keeps)


def _in_lockstep(models: Sequence[Contents], evaluation: Text, way: Way) -> tuple[int, int]:
    """Memory and disk: a block of one model in float32 and hidden states; then slices of heads."""
    states = evaluation.count * way.length * hidden_size(models[0].config) * _F32
    block = max(_largest_block(each) for each in models)
    batch = way.length * max(map(_widest, models)) * _F32 * 6
    held = 0 if way.arrangement.activations_in_file else states
    saves = min(2, models[0].naming.block_count // SAVE_EVERY)
    disk = states * (len(models) + saves + way.arrangement.activations_in_file)
    return max(block + held + batch, _slices(models)), disk


def _slices(models: Sequence[Contents]) -> int:
    """Slices of the heads of all models, as they are stored and computed with, and their logits."""
    row = sum(hidden_size(each.config) for each in models) * _F32
    tokens = min(HEAD_TOKENS, max(map(_vocabulary, models)), max(1, HEAD_BYTES // row))
    return tokens * (row + row // 2 + len(models) * HEAD_POSITIONS * _F32)


def _loaded(model: Contents) -> int:
    """A model whole: codes of its linears in bytes, the rest, and blocks of GGUF, in float32."""
    coded = {tensor.name for tensor in _coded(model)}
    size = 0
    for name, tensor in model.tensors.items():
        in_blocks = tensor.layout is not None and tensor.layout.grid in GGML_TYPES
        size += math.prod(tensor.shape) * (1 if name in coded and not in_blocks else _F32)
    return size


def _coded(model: Contents) -> Iterator[LogicalTensor]:
    return (tensor for tensor in model.tensors.values() if tensor.layout is not None)


class _Walk:
    """What a walk over a model holds beside the libraries, in bytes."""

    def __init__(
        self, contents: Contents, changes: Sequence[Change], calibration: Text | None, way: Way
    ) -> None:
        self._contents, self._way = contents, way
        self._quantized = {change.module: change for change in changes if change.quantized}
        self._block = _largest_block(contents)
        text = replace(calibration, length=way.length) if calibration else None
        self._computing = Computing(contents, text) if text else None
        self._tokens = (calibration.count if calibration else 0) * way.length
        self.activations = self._tokens * hidden_size(contents.config) * _F32

    @property
    def alone(self) -> int:
        """Without data: results, and what it takes to round linears."""
        return max(self._results(part) + self._solving(part) for part in self._parts)

    @property
    def looking(self) -> int:
        """Where nothing is changed."""
        return self._between + self._block + self._batch

    def rounding(self, hessians: Hessians, *, in_turn: bool) -> int:
        """Of a block: its weights and results, activations, and what rounds its linears.

        in_turn: as `quantize_footprint`; only then inputs are kept.
        """
        found = 0
        for block in range(self._contents.naming.block_count):
            working = max(self._working(block, hessians), self._batch)
            found = max(found, self._block + self._results(block) + working)
        return self._between + self._kept * in_turn + found

    @property
    def rounding_head(self) -> int:
        """The same of the head, where it is rounded, too."""
        if self._contents.naming.head not in self._quantized:
            return 0
        square = hessian_bytes(hidden_size(self._contents.config))
        return self._between + self._results(None) * 2 + square + self._solving(None)

    @property
    def inputs(self) -> int:
        """Channels of all linears' inputs."""
        naming, tensors = self._contents.naming, self._contents.tensors
        return sum(
            linear_shape(self._contents, tensors[f"{name}.weight"])[1]
            for block in range(naming.block_count)
            for names in naming.linears(block)
            for name in names
        )

    def saved(self, *, in_turn: bool) -> int:
        """Disk for activations: what is saved, what replaces it, and those in files.

        in_turn: as `rounding`.
        """
        saves = min(2, self._contents.naming.block_count // SAVE_EVERY)
        in_memory, in_files = self._known if in_turn else (0, 0)
        if self._way.arrangement.activations_in_file:
            in_files += self.activations + in_memory
        return self.activations * saves + in_files

    @property
    def _parts(self) -> list[int | None]:
        return [None, *range(self._contents.naming.block_count)]

    @property
    def _between(self) -> int:
        return 0 if self._way.arrangement.activations_in_file else self.activations

    @property
    def _kept(self) -> int:
        return 0 if self._way.arrangement.activations_in_file else self._known[0]

    @property
    def _known(self) -> tuple[int, int]:
        """Inputs that blockwalk.shortcuts keeps in memory, if it may, and in files."""
        return self._computing.kept if self._computing else (0, 0)

    def _changed(self, part: int | None) -> list[Change]:
        naming = self._contents.naming
        return [each for name, each in self._quantized.items() if naming.block_of(name) == part]

    def _results(self, part: int | None) -> int:
        """What the passes have made of a block, until it is written."""
        return sum(_held(change) for change in self._changed(part))

    def _inlets(self, part: int | None) -> Iterator[list[Change]]:
        """Linears that are rounded together, by the input that they share."""
        naming, known = self._contents.naming, self._quantized
        for names in naming.linears(part) if part is not None else [(naming.head,)]:
            if found := [known[name] for name in names if name in known]:
                yield found

    def _solving(self, part: int | None) -> int:
        """What rounds linears, without data."""
        return max(map(_rounding, self._inlets(part)), default=0)

    def _working(self, block: int, hessians: Hessians) -> int:
        """Hessians, as many as are there at once, and what rounds the linears of one input.

        Those of experts come in rounds, as many as take a block's size.
        """
        if hessians == "none":
            return self._solving(block)
        naming, experts, alone, most = self._contents.naming, 0, 0, 0
        for linears in self._inlets(block):
            square = _F32 * linears[0].shape[1] ** 2
            if naming.pool_of(linears[0].module) is None:
                alone += square
                most = max(most, hessian_bytes(linears[0].shape[1]) + _rounding(linears))
            else:
                experts += square
        if hessians == "together":
            return alone + experts + most
        return max(most, min(experts, self._block) + self._solving(block))

    @property
    def _batch(self) -> int:
        """A batch on its way through the widest part of a block."""
        return self._way.batch_size * self._way.length * _widest(self._contents) * _F32 * 4


def _rounding(linears: Sequence[Change]) -> int:
    """What rounds some rows of linears, and then decodes one of them."""
    sizes, cols = [math.prod(change.shape) for change in linears], linears[0].shape[1]
    at_once = min(sum(sizes), _AT_ONCE)
    assert linears[0].quantized is not None
    in_blocks = linears[0].quantized.grid in GGML_TYPES
    copies, visit = _IN_BLOCKS if in_blocks else _ON_GRIDS
    rows = min(threads.usual() * rows_at_once(cols), -(-at_once // cols))
    inner = rows * (copies * cols + visit)
    return _COMPILED + max(int(at_once * _COPIES + inner), max(sizes)) * _F32


def _held(change: Change) -> int:
    """Of a linear that was rounded: its blocks, or a byte a code, and scales and zero points."""
    assert change.quantized is not None
    if change.quantized.grid in GGML_TYPES:
        return change.bytes
    rows, cols = change.shape
    size = change.quantized.group_size
    return rows * cols + 8 * rows * (cols // size if size > 0 else 1)


def hessian_bytes(cols: int) -> int:
    """A Hessian and its factor, which share a square: llmopt.linalg says how.

    Up to 2048 columns there are three squares more; above, as many of blocks, and 512 rows four
    times while columns are put in another order.
    """
    block = min(cols, FACTOR_BLOCK)
    rows = 4 * PERMUTED_ROWS * cols if cols > block else 0
    return 4 * (cols * cols + 3 * block * block + rows)


def _largest_block(contents: Contents) -> int:
    blocks: dict[int, int] = defaultdict(int)
    for name, tensor in contents.tensors.items():
        if (index := contents.naming.block_of(name)) is not None:
            blocks[index] += math.prod(tensor.shape) * _F32
    return max(blocks.values(), default=0)


def _widest(contents: Contents) -> int:
    """The most channels of a linear in a block, on either side."""
    return max(max(shape) for shape in _matrices(contents))


def _matrices(contents: Contents) -> Iterator[tuple[int, ...]]:
    for name, tensor in contents.tensors.items():
        if contents.naming.block_of(name) is not None and len(tensor.shape) == 2:
            yield tensor.shape


def _vocabulary(contents: Contents) -> int:
    return contents.tensors[f"{contents.naming.embedding}.weight"].shape[0]


def hidden_size(config: Mapping[str, object]) -> int:
    """The width of a model's activations."""
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(size := config.get(name), int):
            return size
    text = config.get("text_config")
    return int(text["hidden_size"]) if isinstance(text, dict) else 0
