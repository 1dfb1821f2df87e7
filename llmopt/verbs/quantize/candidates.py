"""Which settings a budget may choose among, for each linear, from names and shapes. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from llmopt.errors import RequestError
from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, GRIDS, lookup
from llmopt.verbs.quantize.changes import regroups
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.shared import budget

#: group sizes that kernels know, the row among them
_GROUP_SIZES = (32, 64, 128, -1)
_COARSE = 128
_CANDIDATE = re.compile(r"(?P<grid>\S+)(?: (?P<group>row|g\d+))?(?: (?P<zero>sym|asym))?")


def candidates(settings: QuantizeSettings) -> list[Layout]:
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


def with_options(changes: Iterable[Change], settings: QuantizeSettings) -> Iterator[Change]:
    """The changes with those settings that each linear may get.

    A linear that an override settles has that one option.
    """
    choices = candidates(settings)
    for change in changes:
        if change.quantized is None:
            yield change
            continue
        if change.why:  # an override settled it
            yield replace(change, options=(change.quantized,))
            continue
        cols = change.shape[1]
        options = tuple(choice for choice in choices if _fits(choice, cols, choices))
        if not options:
            raise RequestError(
                f"no candidate's group size divides the {cols} inputs of {change.name}"
            )
        yield budget.with_options(change, options, settings.format, settings.target_bpw)


def _fits(choice: Layout, cols: int, choices: Sequence[Layout]) -> bool:
    """Whether groups fill a row; one group as wide as a row is the row, if that is a candidate."""
    if choice.group_size == cols:
        return replace(choice, group_size=-1) not in choices
    return choice.group_size == -1 or cols % choice.group_size == 0


def _parse(text: str, settings: QuantizeSettings) -> Layout:
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


def _settings(settings: QuantizeSettings, grid: str, group_size: int, symmetric: bool) -> Layout:
    activations = None if settings.activations == "none" else settings.activations
    return Layout(
        grid=grid, group_size=group_size, symmetric=symmetric, activations=activations,
        desc_act=regroups(settings),
    )  # fmt: skip
