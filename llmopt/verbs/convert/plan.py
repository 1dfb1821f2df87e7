"""What a conversion does with each tensor, from headers alone; a gate where it rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmopt.errors import Mistakes, RecipeError
from llmopt.model.apply import apply
from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.specs import CHECKPOINT, FORMATS, GRIDS
from llmopt.specs.base import FormatSpec
from llmopt.specs.formats import PLAIN
from llmopt.step import PlanContext, Planned, PlannedStep
from llmopt.verbs.convert import gguf_plan, layouts
from llmopt.verbs.convert.settings import (
    CheckpointTarget,
    ConvertSettings,
    GgufTarget,
    ImatrixTarget,
    PlainTarget,
)
from llmopt.verbs.shared import gates
from llmopt.verbs.shared.changes import linear_names
from llmopt.verbs.shared.config import check_config, config_changes
from llmopt.verbs.shared.effort import convert_effort
from llmopt.verbs.shared.fitting import walked
from llmopt.verbs.shared.footprints import convert_footprint


def plan(settings: ConvertSettings, context: PlanContext) -> Planned:
    """The conversion, what it asks for before it, and a gate where it rounds."""
    target = settings.target
    if isinstance(target, ImatrixTarget):
        return gguf_plan.importance(settings, context)
    assert isinstance(target, PlainTarget)
    (mistakes := Mistakes()).add(gates.mistakes(target.gate or (), "gate", context))
    planned, rounds = Planned(()), False
    with mistakes.gathered():
        if isinstance(target, GgufTarget):
            planned, rounds = gguf_plan.plan(settings, target, context)
        else:
            planned, rounds = _checkpoint(settings, target, context)
    mistakes.raise_any()
    usual = [gates.DEFAULT] if rounds else []
    asked = target.gate if target.gate is not None else usual
    return gates.gated(planned, asked, target.gate_base, context)


def _checkpoint(
    settings: ConvertSettings, target: PlainTarget, context: PlanContext
) -> tuple[Planned, bool]:
    """A conversion to a checkpoint, and whether it rounds."""
    model = context.model()
    contents = context.contents(model.name)
    (mistakes := Mistakes()).add(_of_target(settings, contents, context))
    mistakes.raise_any()
    found = list(layouts.conversions(contents, settings))
    changes = tuple(each.change for each in found)
    layouts.refuse_loss(found, context, exact=target.exact)
    _check_held(changes, contents, settings, context)
    key = (*context.key, "to")
    if settings.to != PLAIN:
        check_config(changes, contents.naming, settings.to, context.source, key)
    config = config_changes(contents, changes, settings.to)
    fitted = walked(lambda _: convert_footprint(contents, changes), None, 1, context)
    step = PlannedStep(
        id=context.id,
        verb="convert",
        settings=settings,
        inputs=(model,),
        key=context.key,
        writes=settings.to,
        seed=context.seed,
        changes=changes,
        config_changes=config,
        effort=convert_effort(contents, changes),
        footprint=fitted.footprint,
        summary=f"convert to {settings.to}",
    )
    rounds = settings.to != PLAIN and any(each.loss or each.doubtful for each in found)
    format_id = None if settings.to == PLAIN else settings.to
    return Planned((step,), apply(contents, changes, config, format_id=format_id)), rounds


def _of_target(
    settings: ConvertSettings, contents: Contents, context: PlanContext
) -> Iterator[RecipeError]:
    """Settings that the target of a conversion cannot have."""
    if isinstance(settings.target, CheckpointTarget):
        yield from _of_format(settings.target, FORMATS[settings.to], context)
    elif contents.format is None and contents.kind == CHECKPOINT:
        key = (*context.key, "to")
        yield context.source.error("the model has plain tensors already", key)


def _of_format(
    settings: CheckpointTarget, spec: FormatSpec, context: PlanContext
) -> Iterator[RecipeError]:
    source, place = context.source, context.key
    asymmetric = source.says((*place, "symmetric"), value=True)
    if settings.grid is not None and settings.grid not in spec.grids:
        yield source.error(
            f"format {spec.id} cannot hold grid {settings.grid}",
            (*place, "grid"),
            f"it holds {sorted(spec.grids)}",
        )
    if spec.group_sizes is not None and settings.group_size not in (None, *spec.group_sizes):
        yield source.error(
            f"format {spec.id} has no groups of {settings.group_size}",
            (*place, "group_size"),
            f"it knows: {', '.join(map(str, sorted(spec.group_sizes)))}",
        )
    if settings.symmetric is False and not spec.asymmetric:
        message = f"format {spec.id} has no zero points"
        yield source.error(message, (*place, "symmetric"), asymmetric)
    if settings.symmetric is False and settings.grid and not GRIDS[settings.grid].asymmetric:
        message = f"grid {settings.grid} has no zero points"
        yield source.error(message, (*place, "symmetric"), asymmetric)


def _check_held(
    changes: Sequence[Change], contents: Contents, settings: ConvertSettings,
    context: PlanContext,
) -> None:  # fmt: skip
    """RecipeError where a format would hold not one of the linears."""
    if settings.to == PLAIN or any(change.quantized for change in changes):
        return
    linears = linear_names(contents.naming, head=False)
    first = next(f for f in changes if f.name.removesuffix(".weight") in linears)
    raise context.source.error(
        f"no linear can be in format {settings.to}: {first.name}: {first.why}",
        (*context.key, "group_size" if "groups of" in first.why else "to"),
    )
