"""What a format cannot do with the shapes of linears, and what would get them through. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmopt.errors import RecipeError
from llmopt.model.layout import Layout
from llmopt.recipe import Source
from llmopt.recipe.source import Key
from llmopt.specs.base import FormatSpec

#: what is proposed where a format knows all sizes; -1 is one group a row
_USUAL_GROUPS = (256, 128, 64, 32, 16, -1)


@dataclass(frozen=True)
class Shaped:
    """A linear that is to be quantized.

    packs: whether several codes share a word. key: of the setting that says the group size.
    grouped: whether it does, rather than one of a budget's candidates.
    """

    name: str
    rows: int
    cols: int
    group_size: int
    packs: bool
    key: Key
    grouped: bool = True

    def divides(self, group_size: int) -> bool:
        """Whether groups of this size fill its rows."""
        return group_size == -1 or self.cols % group_size == 0


def mistakes_of(
    linears: Sequence[Shaped], spec: FormatSpec, source: Source, place: Key
) -> Iterator[RecipeError]:
    """Groups that a format does not know or that do not fill rows, and codes that do not pack."""
    told: set[tuple[Key, str]] = set()
    for linear in linears:
        for what, message, key in _faults(linear, spec, place):
            if (key, what) in told:  # a remedy is one for all alike
                continue
            told.add((key, what))
            hint = _remedy(linear, linears, spec, source, place)
            if what == "packing":
                hint = None if (linear.key, "group") in told else hint or _ANY_WIDTH
            if what == "known":
                known = f"it knows: {', '.join(map(str, sorted(spec.group_sizes or ())))}"
                hint = "; ".join(filter(None, (known, hint)))
            yield source.error(message, key, hint)


def _faults(linear: Shaped, spec: FormatSpec, place: Key) -> Iterator[tuple[str, str, Key]]:
    """(what kind, what is wrong, the key that says so)."""
    size = linear.group_size
    if linear.grouped and spec.group_sizes is not None and size not in spec.group_sizes:
        yield "known", f"format {spec.id} has no groups of {size}", linear.key
    elif linear.grouped and not linear.divides(size):
        message = f"group size {size} does not divide the {linear.cols} inputs of {linear.name}"
        yield "group", message, linear.key
    if fault := packing_fault(linear.name, (linear.rows, linear.cols), spec, linear.packs):
        yield "packing", fault, (*place, "format")


#: where no linear packs
_ANY_WIDTH = "fp8, and int8 with int8 activations, in compressed-tensors take any width"


def packing_fault(linear: str, shape: tuple[int, int], spec: FormatSpec, packs: bool) -> str:
    """Why the codes of a linear [outputs, inputs] do not pack in a format; empty where they do."""
    rows, cols = shape
    for width, multiple, side in (
        (cols, spec.in_multiple, "inputs"),
        (rows, spec.out_multiple, "outputs"),
    ):
        if packs and width % multiple:
            return f"format {spec.id} packs in {multiple}s, and {linear} has {width} {side}"
    return ""


def misfit(layout: Layout, shape: tuple[int, int], spec: FormatSpec, *, head: bool) -> str:
    """Why a quantized linear [outputs, inputs] cannot move to a format as it is; empty where so.

    Whether its scales and zero points can is seen when they are read.
    """
    size = layout.group_size
    for refused, why in (
        (layout.grid not in spec.grids, f"cannot hold {layout.grid}"),
        (layout.activations not in (None, *spec.activations),
         f"cannot say that activations are {layout.activations}"),
        (spec.group_sizes is not None and size not in spec.group_sizes, f"has no groups of {size}"),
        (layout.desc_act and not spec.group_index, "cannot say which group an input is in"),
        (not layout.symmetric and not spec.asymmetric, "has no zero points"),
        (head and not spec.quantizes_head, "cannot hold a quantized head"),
    ):  # fmt: skip
        if refused:
            return f"format {spec.id} {why}"
    return packing_fault("it", shape, spec, layout.packs)


def _remedy(
    linear: Shaped, linears: Sequence[Shaped], spec: FormatSpec, source: Source, place: Key
) -> str | None:
    """The group size that the most linears can have, and leaving the others; None where none can.

    Linears with a group size of their own by an override are another matter.
    """
    alike = [each for each in linears if each.key == linear.key]
    own, usual = linear.group_size, spec.group_sizes or _USUAL_GROUPS
    smaller = sorted((size for size in usual if -1 != own > size), reverse=True)
    sizes = [own] if spec.group_sizes is None or own in spec.group_sizes else []
    if linear.grouped:
        sizes += smaller
    sizes = sizes or sorted(usual)  # all are larger

    def left(group_size: int) -> list[Shaped]:
        return [
            each
            for each in alike
            if (each.grouped and not each.divides(group_size))
            or packing_fault("", (each.rows, each.cols), spec, each.packs)
        ]

    best = min(sizes, key=lambda size: len(left(size)))
    kinds = list(dict.fromkeys(_pattern(each.name) for each in left(best)))
    if len(left(best)) == len(alike):
        return None
    advice = [] if best == linear.group_size else [source.says(linear.key, best)]
    if kinds:
        advice.append(f"leave what does not fit: {_leaving(kinds, source, place)}")
    elif advice:
        advice[0] += " fits all"
    return ", and ".join(advice)


def _pattern(linear: str) -> str:
    return f"*.{linear.rpartition('.')[2]}" if "." in linear else linear


def _leaving(patterns: Sequence[str], source: Source, place: Key) -> str:
    """How one asks that linears of these names are left as they are."""
    if source.flag((*place, "overrides")):
        return " ".join(f'--skip "{pattern}"' for pattern in patterns)
    skips = ", ".join(f'{{match: "{pattern}", skip: true}}' for pattern in patterns)
    return f"overrides: [{skips}]"
