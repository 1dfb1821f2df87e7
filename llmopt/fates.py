"""What will happen to each tensor of a model, decided from names and shapes alone. No torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llmopt.formats.headers import Headers, TensorHeader
from llmopt.recipe import QuantizeStep, Source
from llmopt.recipe.source import Key
from llmopt.specs import FORMATS, GRIDS, nearest
from llmopt.specs.base import FormatSpec
from llmopt.specs.families import Naming, family_of


@dataclass(frozen=True)
class LinearSettings:
    """How one linear is quantized. Its grid may come from an override."""

    grid: str
    bits: int
    group_size: int
    symmetric: bool

    @property
    def label(self) -> str:
        group = "row" if self.group_size == -1 else f"g{self.group_size}"
        return f"{self.grid} {group} {'sym' if self.symmetric else 'asym'}"


@dataclass(frozen=True)
class TensorFate:
    """One tensor's future. `quantize` is None where it is kept; `why` says why then.

    `name` is the tensor's name in what will be written, `shape` its shape as stored, and
    [outputs, inputs] for a linear whatever way the checkpoint stores it.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    quantize: LinearSettings | None
    why: str

    @property
    def bytes(self) -> int:
        """The size it will have on disk."""
        if self.quantize is None:
            return self.stored_bytes
        rows, cols = self.shape
        bits, group = self.quantize.bits, self.quantize.group_size
        groups = 1 if group == -1 else cols // group
        index = 4 * cols
        return rows * cols * bits // 8 + groups * rows * 2 + groups * rows * bits // 8 + index

    def as_dict(self) -> dict[str, Any]:
        fate = asdict(self) | {"bytes": self.bytes}
        return fate | {"quantize": self.quantize.label if self.quantize else None}


def quantize_fates(
    headers: Headers, settings: QuantizeStep, source: Source, place: Key
) -> Iterator[TensorFate]:
    """The fate of every tensor, in the checkpoint's order.

    Raises RecipeError naming the layer for a group size that does not divide it, a shape that
    the format cannot pack, or a pattern that matches nothing.
    """
    family = family_of(headers.config)
    naming = family.naming(headers.tensors)
    linears = linear_names(naming, head=settings.head)
    _check_patterns(settings, linears, source, place)
    _check_format(settings, source, place)
    for stored, header in headers.tensors.items():
        name = naming.rename(stored)
        linear = name.removesuffix(".weight")
        if not name.endswith(".weight") or linear not in linears:
            yield TensorFate(name, header.shape, header.nbytes, None, "not a linear")
            continue
        shape = header.shape[::-1] if family.conv1d and linear != naming.head else header.shape
        chosen, why = _chosen(settings, linear)
        if chosen is None:
            yield TensorFate(name, shape, header.nbytes, None, why)
            continue
        _check_shape(linear, shape, chosen, settings, source, place)
        yield TensorFate(name, shape, header.nbytes, chosen, why)
    if settings.head and not any(
        naming.rename(n) == f"{naming.head}.weight" for n in headers.tensors
    ):
        yield _untied_head(headers, naming, settings, source, place)


def linear_names(naming: Naming, *, head: bool) -> set[str]:
    """The modules that a step may quantize: every block's linears, and the head if asked."""
    names = {
        linear
        for block in range(naming.block_count)
        for inlet in naming.linears(block)
        for linear in inlet
    }
    return names | {naming.head} if head else names


def _untied_head(
    headers: Headers, naming: Naming, settings: QuantizeStep, source: Source, place: Key
) -> TensorFate:
    """A head that shares the embedding's weights gets quantized ones of its own."""
    table: TensorHeader = next(
        h for n, h in headers.tensors.items() if naming.rename(n) == f"{naming.embedding}.weight"
    )
    chosen, why = _chosen(settings, naming.head)
    if chosen:
        _check_shape(naming.head, table.shape, chosen, settings, source, place)
    return TensorFate(f"{naming.head}.weight", table.shape, table.nbytes, chosen, why or "untied")


def _chosen(settings: QuantizeStep, linear: str) -> tuple[LinearSettings | None, str]:
    grid, group_size, symmetric = settings.grid, settings.group_size, settings.symmetric
    why, skip = "", False
    for override in settings.overrides:
        if not fnmatch.fnmatchcase(linear, override.match):
            continue
        why, skip = f"override {override.match}", override.skip
        grid = override.grid or grid
        group_size = override.group_size or group_size
        symmetric = symmetric if override.symmetric is None else override.symmetric
    if skip:
        return None, why
    return LinearSettings(grid, GRIDS[grid].bits, group_size, symmetric), why


def _check_patterns(settings: QuantizeStep, linears: set[str], source: Source, place: Key) -> None:
    for index, override in enumerate(settings.overrides):
        if not any(fnmatch.fnmatchcase(name, override.match) for name in linears):
            match = nearest(override.match, linears)
            raise source.error(
                f"the pattern {override.match!r} matches no linear that this step quantizes",
                (*place, "overrides", index, "match"),
                f"a linear is called {match or min(linears)!r}",
            )


def _check_format(settings: QuantizeStep, source: Source, place: Key) -> None:
    spec = FORMATS[settings.format]
    for index, grid in enumerate([settings.grid, *(o.grid for o in settings.overrides if o.grid)]):
        if grid not in spec.grids:
            key = (*place, "grid") if index == 0 else (*place, "overrides")
            raise source.error(
                f"format {spec.id} cannot hold grid {grid}", key, f"it holds {sorted(spec.grids)}"
            )
    if settings.embeddings and not spec.quantizes_embeddings:
        raise source.error(
            f"format {spec.id} cannot hold quantized embeddings", (*place, "embeddings")
        )


def _check_shape(
    linear: str,
    shape: tuple[int, ...],
    chosen: LinearSettings,
    settings: QuantizeStep,
    source: Source,
    place: Key,
) -> None:
    rows, cols = shape
    spec: FormatSpec = FORMATS[settings.format]
    if chosen.group_size != -1 and cols % chosen.group_size:
        fits = [g for g in (256, 128, 64, 32, 16) if cols % g == 0 and g < chosen.group_size]
        advice = f"group_size: {fits[0]} divides it" if fits else "group_size: -1 always fits"
        raise source.error(
            f"group size {chosen.group_size} does not divide the {cols} inputs of {linear}",
            (*place, "group_size"),
            f"{advice}; or override this layer",
        )
    for width, multiple, side in (
        (cols, spec.in_multiple, "inputs"),
        (rows, spec.out_multiple, "outputs"),
    ):
        if width % multiple:
            raise source.error(
                f"format {spec.id} packs in {multiple}s, and {linear} has {width} {side}",
                (*place, "format"),
                f'leave it: overrides: [{{match: "{linear}", skip: true}}]',
            )


def bits_per_weight(fates: list[TensorFate]) -> float:
    """Stored bits per weight over the quantized tensors; NaN where there is none."""
    quantized = [f for f in fates if f.quantize]
    weights = sum(math.prod(f.shape) for f in quantized)
    return sum(f.bytes for f in quantized) * 8 / weights if weights else math.nan
