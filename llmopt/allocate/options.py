"""Which settings a budget may choose among, for each linear, from names and shapes. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from llmopt.errors import RequestError
from llmopt.model.change import TensorFate
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, GRIDS, lookup

#: group sizes that kernels know, the row among them
_GROUP_SIZES = (32, 64, 128, -1)
_COARSE = 128
CANDIDATES_ALONE = "only a budget chooses among candidates"
_CANDIDATE = re.compile(r"(?P<grid>\S+)(?: (?P<group>row|g\d+))?(?: (?P<zero>sym|asym))?")
#: bytes of a tensor's entry in a safetensors header beside its name, and tensors of a linear
_ENTRY, _PARTS, _FILE = 110, 5, 4096


class Choosing(Protocol):
    """What the candidates of a budget follow from: the settings of a quantization."""

    @property
    def format(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def group_size(self) -> int: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def activations(self) -> str: ...
    @property
    def target_bpw(self) -> float | None: ...
    @property
    def candidates(self) -> list[str]: ...


def candidates(settings: Choosing) -> list[Layout]:
    """What `candidates` says, or every integer grid of the format in the usual group sizes.

    A finer group saves less per byte than one more bit does: where the format has the grid of one
    more bit, coarse groups are all, and of the finest grid only the coarsest group.
    """
    if settings.candidates:
        return [_parse(text, settings) for text in settings.candidates]
    spec = FORMATS[settings.format]
    grids = [g for g in GRIDS.values() if g.module == "llmopt.grids.integer" and g.id in spec.grids]
    sizes = {*_GROUP_SIZES, settings.group_size}
    if spec.group_sizes is not None:
        sizes &= spec.group_sizes
    groups = sorted(sizes, key=lambda size: size if size > 0 else math.inf)
    coarse = [size for size in groups if size == -1 or size >= _COARSE] or groups[-1:]
    bits = {grid.bits for grid in grids}
    return [
        _settings(settings, grid.id, group, settings.symmetric)
        for grid in grids
        for group in (
            groups[-1:] if grid.bits == max(bits) else coarse if grid.bits + 1 in bits else groups
        )
    ]


def with_options(fates: Iterable[TensorFate], settings: Choosing) -> Iterator[TensorFate]:
    """The fates with those settings that each linear may get.

    A linear that an override settles has that one option. `bytes` of the others is their share of
    the target, until the allocation is known.
    """
    choices, spec = candidates(settings), FORMATS[settings.format]
    for fate in fates:
        if fate.quantize is None:
            yield fate
            continue
        if fate.why:  # an override settled it
            yield replace(fate, options=(fate.quantize,))
            continue
        rows, cols = fate.shape
        options = tuple(choice for choice in choices if _fits(choice, cols, choices))
        if not options:
            raise RequestError(
                f"no candidate's group size divides the {cols} inputs of {fate.name}"
            )
        sizes = [option.bytes((rows, cols), spec) for option in options]
        wanted = rows * cols * settings.target_bpw / 8 if settings.target_bpw else sizes[-1]
        size = round(min(max(wanted, min(sizes)), max(sizes)))
        yield replace(fate, options=options, bytes=size, why="by budget")


def byte_budget(fates: Sequence[TensorFate], settings: dict[str, Any]) -> int:
    """Bytes for all quantized linears together, of a step's effective settings.

    target_bpw counts their weights; target_size the weight files as a whole, what is kept and the
    files' headers included.
    """
    quantized = [fate for fate in fates if fate.options]
    if settings["target_bpw"] is not None:
        return int(sum(math.prod(f.shape) for f in quantized) * settings["target_bpw"] / 8)
    kept = sum(fate.bytes + len(fate.name) + _ENTRY for fate in fates if not fate.options)
    headers = sum(_PARTS * (len(fate.name) + _ENTRY) for fate in quantized) + _FILE
    return int(settings["target_size"]) - kept - headers


def _fits(choice: Layout, cols: int, choices: Sequence[Layout]) -> bool:
    """Whether groups fill a row; one group as wide as a row is the row, if that is a candidate."""
    if choice.group_size == cols:
        return replace(choice, group_size=-1) not in choices
    return choice.group_size == -1 or cols % choice.group_size == 0


def _parse(text: str, settings: Choosing) -> Layout:
    match = _CANDIDATE.fullmatch(text.strip())
    if match is None:
        raise RequestError(
            f"{text!r} is no candidate", hint="write GRID, GRID g32 or GRID row, then sym or asym"
        )
    grid, spec = lookup(GRIDS, "grid", match["grid"]), FORMATS[settings.format]
    group = {None: settings.group_size, "row": -1}.get(match["group"]) or int(match["group"][1:])
    symmetric = settings.symmetric if match["zero"] is None else match["zero"] == "sym"
    fits = spec.group_sizes is None or group in spec.group_sizes
    if grid.id not in spec.grids or not fits or not (symmetric or grid.asymmetric):
        raise RequestError(f"format {settings.format} cannot hold the candidate {text!r}")
    return _settings(settings, grid.id, group, symmetric)


def _settings(settings: Choosing, grid: str, group_size: int, symmetric: bool) -> Layout:
    activations = None if settings.activations == "none" else settings.activations
    return Layout(grid=grid, group_size=group_size, symmetric=symmetric, activations=activations)
