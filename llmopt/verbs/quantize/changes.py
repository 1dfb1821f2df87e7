"""What a quantize step makes of each tensor, from names and shapes alone. No torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from llmopt.errors import Mistakes, RecipeError
from llmopt.methods.quantize.settings import Feedback, GptqSettings, Sequential
from llmopt.model.change import Change, ConfigChange
from llmopt.model.contents import Contents
from llmopt.model.layout import Layout
from llmopt.recipe import Source
from llmopt.recipe.source import Key
from llmopt.specs import FORMATS, GRIDS, nearest
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.shared.changes import (
    has_head,
    kept,
    kept_because,
    linear_names,
    linear_shape,
    tied_head,
)
from llmopt.verbs.shared.config import check_config, config_changes
from llmopt.verbs.shared.shapes import Shaped, misfit, mistakes_of


def quantize_changes(
    contents: Contents, settings: QuantizeSettings, source: Source, place: Key
) -> Iterator[Change]:
    """The change of every tensor, in the checkpoint's order.

    Raises RecipeError naming the layer for a group size that does not divide it, a shape that
    the format cannot pack, settings that its config cannot express, or a pattern that matches
    nothing; the first of these, with the others.
    """
    mistakes = Mistakes()
    changes = list(_changes(contents, settings, source, place, mistakes))
    mistakes.add(_of_held(changes, contents, settings, source, place))
    mistakes.add(_of_experts(changes, contents, source, place))
    mistakes.raise_any()
    check_config(changes, contents.naming, settings.format, source, (*place, "format"))
    yield from changes


def quantize_config(
    contents: Contents, changes: Sequence[Change], settings: QuantizeSettings
) -> tuple[ConfigChange, ...]:
    """What a quantize step that does this to the tensors rewrites in the config."""
    solver = settings.solver
    return config_changes(
        contents, changes, settings.format,
        damping=solver.damping if isinstance(solver, Feedback) else None,
        true_sequential=in_order(settings),
    )  # fmt: skip


def in_order(settings: QuantizeSettings) -> bool:
    """Whether statistics of each linear see the quantized ones before it."""
    return isinstance(settings.solver, Sequential) and settings.solver.true_sequential


def _changes(
    contents: Contents, settings: QuantizeSettings, source: Source, place: Key, mistakes: Mistakes
) -> Iterator[Change]:
    naming = contents.naming
    linears = linear_names(naming, head=settings.head)
    shaped: list[Shaped] = []
    mistakes.add(_of_patterns(settings, linears, source, place))
    mistakes.add(_of_format(settings, source, place))
    for name, tensor in contents.tensors.items():
        linear = name.removesuffix(".weight")
        if not name.endswith(".weight") or linear not in linears:
            yield kept(tensor, kept_because(naming, name), settings.format, contents.format)
            continue
        shape = linear_shape(contents, tensor)
        chosen, why, keys = _chosen(settings, linear)
        if chosen is None:
            yield kept(tensor, why, settings.format, contents.format)
            continue
        mistakes.add(_of_zeros(chosen, source, place, keys))
        # without a reason it is a budget's candidate whose group has to fit
        grouped, key = bool(why) or not settings.has_budget, (*place, *keys["group_size"])
        shaped.append(Shaped(linear, *shape, chosen.group_size, chosen.packs, key, grouped))
        yield _quantized(name, shape, chosen, why, settings)
    if not has_head(contents):
        yield _shared_head(contents, settings, source, place, mistakes, shaped)
    mistakes.add(mistakes_of(shaped, FORMATS[settings.format], source, place))


def _shared_head(
    contents: Contents, settings: QuantizeSettings, source: Source, place: Key, mistakes: Mistakes,
    shaped: list[Shaped],
) -> Change:  # fmt: skip
    """A head that shares the embedding's weights gets quantized ones of its own, if asked."""
    naming = contents.naming
    rows, cols = contents.tensors[f"{naming.embedding}.weight"].shape
    chosen, why, keys = _chosen(settings, naming.head)
    if chosen is None or not settings.head:
        return tied_head(contents)
    mistakes.add(_of_zeros(chosen, source, place, keys))
    key = (*place, *keys["group_size"])
    shaped.append(Shaped(naming.head, rows, cols, chosen.group_size, chosen.packs, key))
    change = _quantized(f"{naming.head}.weight", (rows, cols), chosen, why or "untied", settings)
    return replace(change, sources=(f"{naming.embedding}.weight",))


def _quantized(
    name: str, shape: tuple[int, int], chosen: Layout, why: str, settings: QuantizeSettings
) -> Change:
    size = chosen.bytes(shape, FORMATS[settings.format])
    return Change(
        name=name, actions=("quantized",), shape=shape, bytes=size, layout=chosen, why=why
    )


def _chosen(settings: QuantizeSettings, linear: str) -> tuple[Layout | None, str, dict[str, Key]]:
    """A linear's settings, None where it is skipped; why; and which keys of the step say them."""
    grid, group_size, symmetric = settings.grid, settings.group_size, settings.symmetric
    keys: dict[str, Key] = {name: (name,) for name in ("grid", "group_size", "symmetric")}
    why, skip = "", False
    for index, override in enumerate(settings.overrides):
        if not fnmatch.fnmatchcase(linear, override.match):
            continue
        why, skip = f"override {override.match}", override.skip
        grid = override.grid or grid
        group_size = override.group_size or group_size
        symmetric = symmetric if override.symmetric is None else override.symmetric
        said = [name for name in keys if getattr(override, name) is not None]
        keys |= {name: ("overrides", index, name) for name in said}
    if skip:
        return None, why, keys
    # another grid by an override is for the weights alone
    activations = settings.activations if settings.activations == grid else None
    chosen = Layout(
        grid=grid, group_size=group_size, symmetric=symmetric, activations=activations,
        desc_act=regroups(settings),
    )  # fmt: skip
    return chosen, why, keys


def regroups(settings: QuantizeSettings) -> bool:
    """Whether inputs are put into other groups than they are stored in."""
    return isinstance(settings.solver, GptqSettings) and settings.solver.regroups


def _of_patterns(
    settings: QuantizeSettings, linears: set[str], source: Source, place: Key
) -> Iterator[RecipeError]:
    for index, override in enumerate(settings.overrides):
        if not any(fnmatch.fnmatchcase(name, override.match) for name in linears):
            match = nearest(override.match, linears)
            yield source.error(
                f"the pattern {override.match!r} matches no linear that this step quantizes",
                (*place, "overrides", index, "match"),
                f"a linear is called {match or min(linears)!r}",
            )


def _of_format(settings: QuantizeSettings, source: Source, place: Key) -> Iterator[RecipeError]:
    spec = FORMATS[settings.format]
    grids: dict[Key, str | None] = {(*place, "grid"): settings.grid}
    for index, override in enumerate(settings.overrides):
        grids[(*place, "overrides", index, "grid")] = override.grid
    for key, grid in grids.items():
        if grid is not None and grid not in spec.grids:
            holds = f"it holds {', '.join(sorted(spec.grids))}"
            yield source.error(f"format {spec.id} cannot hold grid {grid}", key, holds)
    if settings.activations not in ("none", *spec.activations):
        held = ", ".join(["none", *sorted(spec.activations)])
        yield source.error(
            f"format {spec.id} cannot say that activations are {settings.activations}",
            (*place, "activations"),
            f"it knows: {held}",
        )
    if settings.activations not in ("none", settings.grid):
        yield source.error(
            f"{settings.activations} activations go with {settings.activations} weights, "
            f"not {settings.grid}",
            (*place, "activations"),
            source.says((*place, "grid"), settings.activations),
        )
    if regroups(settings) and not spec.group_index:
        yield source.error(
            f"format {spec.id} cannot say which group an input is in",
            (*place, "act_order"),
            f"{source.says((*place, 'act_order'), 'group')} keeps inputs in their stored groups",
        )
    if settings.head and not spec.quantizes_head:
        yield source.error(f"format {spec.id} cannot hold a quantized head", (*place, "head"))
    if settings.embeddings and not spec.quantizes_embeddings:
        yield source.error(
            f"format {spec.id} cannot hold quantized embeddings", (*place, "embeddings")
        )


def _of_held(
    changes: Iterable[Change], contents: Contents, settings: QuantizeSettings, source: Source,
    place: Key,
) -> Iterator[RecipeError]:  # fmt: skip
    """What came quantized and is left alone has to fit into the format as it is."""
    held = [change for change in changes if change.held]
    head = f"{contents.naming.head}.weight"

    def refused(format_id: str) -> Iterator[str]:
        spec = FORMATS[format_id]
        for change in held if contents.format != format_id else ():
            assert change.held is not None
            rows, cols = change.shape
            if why := misfit(change.held, (rows, cols), spec, head=change.name == head):
                yield f"{change.name} is left as it came, {change.held.label}, and {why}"

    first = next(refused(settings.format), None)
    if first is None:
        return
    grids = {settings.grid, *(o.grid for o in settings.overrides if o.grid)}
    others = [
        spec.id
        for spec in FORMATS.values()
        if grids <= spec.grids
        and spec.quantizes_head >= settings.head
        and not any(refused(spec.id))
    ]
    plain = "make plain weights of it first: llmopt convert --to hf"
    advice = [source.says((*place, "format"), others[0]) + " can"] if others else []
    yield source.error(first, (*place, "format"), ", or ".join([*advice, plain]))


def _of_experts(
    changes: Iterable[Change], contents: Contents, source: Source, place: Key
) -> Iterator[RecipeError]:
    """Experts in one parameter are multiplied as the model does it: inputs stay as they are."""
    naming = contents.naming
    for change in changes:
        layout = change.quantized
        if layout is None or layout.activations is None or not naming.family.stacks:
            continue
        if naming.pool_of(change.module) is not None:
            yield source.error(
                f"{change.module} is part of a tensor of all experts, and inputs stay as they are",
                (*place, "activations"),
                "an override that skips the experts leaves them as they are",
            )
            return


def _of_zeros(
    chosen: Layout, source: Source, place: Key, keys: dict[str, Key]
) -> Iterator[RecipeError]:
    if not chosen.symmetric and not GRIDS[chosen.grid].asymmetric:
        symmetric = (*place, *keys["symmetric"])
        hint = source.says(symmetric, value=True)
        yield source.error(f"grid {chosen.grid} has no zero points", symmetric, hint)
