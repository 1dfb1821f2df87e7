"""What a conversion does with each tensor, from headers alone; a gate where it rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmopt.errors import Mistakes, RecipeError
from llmopt.model.change import TensorFate
from llmopt.model.contents import Contents
from llmopt.specs import CHECKPOINT, FORMATS, GRIDS
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.step import PlanContext, Planned, PlannedStep
from llmopt.verbs.convert import gguf_plan, layouts
from llmopt.verbs.convert.settings import ConvertSettings, GgufSettings
from llmopt.verbs.shared import gates
from llmopt.verbs.shared.changes import check_config, linear_names
from llmopt.verbs.shared.footprints import convert_footprint


def plan(settings: ConvertSettings, context: PlanContext) -> Planned:
    """The conversion, what it asks for before it, and a gate where it rounds."""
    (mistakes := Mistakes()).add(gates.mistakes(settings.gate or (), "gate", context))
    planned, rounds = Planned(()), False
    with mistakes.gathered():
        if settings.to == "gguf":
            planned, rounds = gguf_plan.plan(settings, context)
        elif settings.to == IMATRIX:
            planned = gguf_plan.importance(settings, context)
        else:
            planned, rounds = _checkpoint(settings, context)
    mistakes.raise_any()
    usual = [gates.DEFAULT] if rounds else []
    asked = settings.gate if settings.gate is not None else usual
    return gates.gated(planned, asked, settings.gate_base, context)


def _checkpoint(settings: ConvertSettings, context: PlanContext) -> tuple[Planned, bool]:
    """A conversion to a checkpoint, and whether it rounds."""
    model = context.model()
    contents = context.contents(model.name)
    (mistakes := Mistakes()).add(_of_target(settings, contents, context))
    mistakes.raise_any()
    found = list(layouts.conversions(contents, settings))
    fates = tuple(each.fate for each in found)
    layouts.refuse_loss(found, context, exact=settings.exact)
    _check_held(fates, contents, settings, context)
    key = (*context.key, "to")
    check_config(fates, contents.naming, settings.to, context.source, key)
    step = PlannedStep(
        id=context.id,
        verb="convert",
        settings=settings,
        inputs=(model,),
        key=context.key,
        writes=settings.to,
        seed=context.seed,
        fates=fates,
        footprint=convert_footprint(contents, fates),
        summary=f"convert to {settings.to}",
    )
    rounds = settings.to != PLAIN and any(each.loss or each.doubtful for each in found)
    return Planned((step,), layouts.contents_after(contents, fates, settings)), rounds


def _of_target(
    settings: ConvertSettings, contents: Contents, context: PlanContext
) -> Iterator[RecipeError]:
    """Settings that the target of a conversion cannot have."""
    source, place = context.source, context.key
    for name in sorted(GgufSettings.model_fields.keys() & settings.model_fields_set):
        yield source.error("only conversions to gguf have this setting", (*place, name))
    if settings.to == PLAIN:
        for name in ("grid", "group_size", "symmetric"):
            if getattr(settings, name) is not None:
                yield source.error("plain tensors have no such setting", (*place, name))
        if contents.format is None and contents.kind == CHECKPOINT:
            yield source.error("the model has plain tensors already", (*place, "to"))
        return
    yield from _of_format(settings, context)


def _of_format(settings: ConvertSettings, context: PlanContext) -> Iterator[RecipeError]:
    source, place, spec = context.source, context.key, FORMATS[settings.to]
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
    fates: Sequence[TensorFate], contents: Contents, settings: ConvertSettings,
    context: PlanContext,
) -> None:  # fmt: skip
    """RecipeError where a format would hold not one of the linears."""
    if settings.to == PLAIN or any(fate.quantize for fate in fates):
        return
    linears = linear_names(contents.naming, head=False)
    first = next(f for f in fates if f.name.removesuffix(".weight") in linears)
    raise context.source.error(
        f"no linear can be in format {settings.to}: {first.name}: {first.why}",
        (*context.key, "group_size" if "groups of" in first.why else "to"),
    )
