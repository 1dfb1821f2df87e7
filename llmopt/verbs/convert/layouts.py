"""What a conversion does with each tensor, decided from names, shapes and layouts. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from llmopt.model.change import Change
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.layout import Layout
from llmopt.specs import FORMATS, GRIDS
from llmopt.specs.base import FormatSpec
from llmopt.specs.formats import PLAIN
from llmopt.specs.ggml import GGML_TYPES
from llmopt.step import PlanContext
from llmopt.verbs.convert.settings import CheckpointTarget, ConvertSettings, PlainTarget
from llmopt.verbs.shared.changes import (
    DTYPES,
    has_head,
    kept,
    kept_because,
    linear_names,
    linear_shape,
    tied_head,
)
from llmopt.verbs.shared.shapes import packing_fault

_USUAL_GROUP = 128
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Conversion:
    """A tensor's change, and what is known to be lost on the way; None where nothing need be.

    Whether the values allow what the layouts allow is seen when they are read. `doubtful`: they
    are likely not to, because inputs are out of order.
    """

    change: Change
    loss: str | None
    doubtful: bool = False


def conversions(contents: Contents, settings: ConvertSettings) -> Iterator[Conversion]:
    """What becomes of every tensor, in the checkpoint's order."""
    spec = None if settings.to == PLAIN else FORMATS[settings.to]
    target = settings.target
    assert isinstance(target, PlainTarget)
    asked = target.group_size if isinstance(target, CheckpointTarget) else None
    group_size = asked or _common_group_size(contents, spec)
    linears = linear_names(contents.naming, head=False)
    for name, tensor in contents.tensors.items():
        module = name.removesuffix(".weight")
        # what a quantized source leaves plain stays so
        if tensor.layout is None and (contents.format or spec is None or module not in linears):
            yield Conversion(_kept(contents, tensor), None)
            continue
        shape = linear_shape(contents, tensor)
        if spec is None or not isinstance(target, CheckpointTarget):
            yield _plain(contents, tensor, shape, target, "plain tensors are asked for")
            continue
        chosen = _chosen(tensor.layout, shape, group_size, target, spec)
        if module == contents.naming.head and not spec.quantizes_head:
            chosen = f"format {spec.id} cannot hold a quantized head"
        if isinstance(chosen, str):
            yield _plain(contents, tensor, shape, target, chosen)
            continue
        indexed = tensor.layout is not None and tensor.layout.desc_act
        same = tensor.layout is not None and tensor.layout.group_size == chosen.group_size
        keeps = indexed and spec.group_index and same
        chosen = replace(chosen, desc_act=keeps)
        came = f"from {contents.format}, {tensor.layout.label}" if tensor.layout else "from plain"
        change = Change(
            name=name, actions=("quantized",), shape=shape, bytes=chosen.bytes(shape, spec),
            layout=chosen, why=came, settled=tensor.settled,
            options=_open(chosen, target) if tensor.layout else (),
        )  # fmt: skip
        # a minimum need not be a multiple of its scale
        doubtful = tensor.layout is not None and tensor.layout.grid in ("Q4_1", "Q5_1")
        doubtful |= indexed and not keeps
        yield Conversion(change, _loss(tensor.layout, chosen, spec), doubtful)
    if not has_head(contents):
        yield Conversion(tied_head(contents), None)


def refuse_loss(found: Sequence[Conversion], context: PlanContext, *, exact: bool) -> None:
    """RecipeError where a conversion has to be exact, and layouts alone say that it is not."""
    lost = next((each for each in found if each.loss), None)
    if lost and exact:
        key = (*context.key, "exact")
        raise context.source.error(
            f"{lost.change.name} cannot be converted exactly: {lost.loss}",
            key,
            f"{context.source.says(key, value=False)} it is rounded, and reported",
        )


def _open(chosen: Layout, target: CheckpointTarget) -> tuple[Layout, ...]:
    """What the values may yet make of a layout: zero points that they do not need, no index."""
    signs = {chosen.symmetric, chosen.symmetric or target.symmetric is None}
    indices = {chosen.desc_act, False}
    found = {replace(chosen, symmetric=s, desc_act=i) for s in signs for i in indices}
    return tuple(sorted(found, key=lambda each: each != chosen)) if len(found) > 1 else ()


def _kept(contents: Contents, tensor: LogicalTensor) -> Change:
    why = kept_because(contents.naming, tensor.name)
    if tensor.name.removesuffix(".weight") in linear_names(contents.naming, head=True):
        why = "plain in the source"
    return kept(tensor, why, None, None)


def _plain(
    contents: Contents, tensor: LogicalTensor, shape: tuple[int, int], settings: PlainTarget,
    why: str,
) -> Conversion:  # fmt: skip
    """A linear that is plain afterwards."""
    if tensor.layout is None:
        return Conversion(kept(tensor, why, None, None), None)
    if settings.dtype != "auto":
        dtype, called = DTYPES[settings.dtype], str(settings.dtype)
    else:  # the embedding's, whatever the config says; blocks of a GGUF type are read as float32
        stored = contents.tensors[f"{contents.naming.embedding}.weight"].dtype
        dtype, called = stored if stored in _WIDTHS else "F32", "the model's own dtype"
    transposed = contents.naming.transposed(tensor.name.removesuffix(".weight"))
    change = Change(
        name=tensor.name,
        actions=("decoded",),
        shape=shape[::-1] if transposed else shape,
        bytes=shape[0] * shape[1] * _WIDTHS[dtype],
        dtype=dtype,
        why=f"decoded: {why}",
    )
    lost = f"decoded values are rounded to {called}"
    return Conversion(change, None if _WIDTHS[dtype] >= 4 else lost)


def _common_group_size(contents: Contents, spec: FormatSpec | None) -> int | None:
    """The group size that all linears get, where a format knows few; None: each keeps its own.

    The largest that every group of the source is made of; of a plain one, that divides all inputs.
    """
    if spec is None or spec.group_sizes is None:
        return None
    linears = linear_names(contents.naming, head=False) if contents.format is None else set()
    present = [
        _own_group(tensor.layout, linear_shape(contents, tensor)[1])
        for name, tensor in contents.tensors.items()
        if tensor.layout is not None or name.removesuffix(".weight") in linears
    ]
    allowed = sorted(spec.group_sizes, reverse=True)
    common = (size for size in allowed if size > 0 and all(p % size == 0 for p in present))
    return next(common, allowed[0])


def _own_group(layout: Layout | None, cols: int) -> int:
    """Inputs that surely share a scale: fewer than a group's where its last is not full."""
    return cols if layout is None or layout.group_size == -1 else math.gcd(layout.group_size, cols)


def _chosen(
    layout: Layout | None, shape: tuple[int, int], group_size: int | None,
    settings: CheckpointTarget, spec: FormatSpec,
) -> Layout | str:  # fmt: skip
    """What a linear [outputs, inputs] becomes, or why the format cannot hold it."""
    cols = shape[1]
    grid = settings.grid or _grid(layout, spec)
    own = layout.group_size if layout else _USUAL_GROUP
    if layout and layout.blocks and grid == layout.grid and group_size in (None, own):
        return Layout(grid=grid, group_size=own, symmetric=True, blocks=True)
    size = group_size or own
    # an index that the target keeps needs no full groups
    indexed = layout is not None and layout.desc_act and spec.group_index
    if layout and size == layout.group_size != -1 and not group_size and not indexed:
        size = _own_group(layout, cols)
    if grid == "fp8" and settings.group_size is None:
        size = -1  # checkpoints of FP8 weights that engines run have a scale a row
    if size != -1 and cols % size and not (indexed and layout and size == layout.group_size):
        return f"groups of {size} do not divide its {cols} inputs"
    activations = layout.activations if layout and layout.grid == grid else None
    if activations not in spec.activations:
        activations = None
    symmetric = settings.symmetric
    if symmetric is None:
        symmetric = layout.symmetric if layout else True
    symmetric |= not (GRIDS[grid].asymmetric and spec.asymmetric)
    chosen = Layout(grid=grid, group_size=size, symmetric=symmetric, activations=activations)
    return packing_fault("it", shape, spec, chosen.packs) or chosen


def _grid(layout: Layout | None, spec: FormatSpec) -> str:
    """The source's own grid, or the smallest that has its values, or the largest there is."""
    held = sorted(spec.grids, key=lambda grid: (GRIDS[grid].bits, grid == "fp8"))
    if layout is None:
        return "int4" if "int4" in held else held[0]
    if layout.grid in held:
        return layout.grid
    integers = [grid for grid in held if grid.startswith("int")] or held
    larger = [grid for grid in integers if GRIDS[grid].bits >= layout.bits]
    return larger[0] if larger else integers[-1]


def _is_integer(grid: str) -> bool:
    ggml = GGML_TYPES.get(grid)
    return ggml.is_integer if ggml else grid.startswith("int")


def _loss(layout: Layout | None, chosen: Layout, spec: FormatSpec) -> str | None:
    """What the layouts alone say will be lost."""
    if layout is None:
        return "plain weights are rounded"
    if layout.grid != chosen.grid and not (_is_integer(layout.grid) and _is_integer(chosen.grid)):
        return f"{layout.grid} values are not {chosen.grid} values"
    if layout.bits > chosen.bits:
        return f"codes of {layout.bits} bits do not fit {chosen.bits}"
    if layout.activations != chosen.activations:
        return f"format {spec.id} cannot say that activations are {layout.activations}"
    wanted, present = chosen.group_size, layout.group_size
    if wanted != present and present != -1 and (wanted == -1 or present % wanted):
        return f"groups of {present} are not made of groups of {wanted}"
    return None
