"""What quantizing a model takes: an allocation where there is a budget, and a gate. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from llmopt.errors import Mistakes, RecipeError
from llmopt.methods.quantize.settings import Searched
from llmopt.model.apply import apply
from llmopt.model.change import Change
from llmopt.model.contents import Contents
from llmopt.recipe.source import Key
from llmopt.specs import METHODS
from llmopt.step import PlanContext, Planned, PlannedStep, Text
from llmopt.verbs.quantize.candidates import with_options
from llmopt.verbs.quantize.changes import in_order, quantize_changes, quantize_config
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.shared import gates
from llmopt.verbs.shared.budget import CANDIDATES_ALONE, after_allocation, goal
from llmopt.verbs.shared.config import check_config
from llmopt.verbs.shared.effort import quantize_effort
from llmopt.verbs.shared.fitting import walked
from llmopt.verbs.shared.footprints import Hessians, quantize_footprint


def plan(settings: QuantizeSettings, context: PlanContext) -> Planned:
    """The step, the allocation before it and the gate after it that it asks for."""
    asked = [gates.DEFAULT] if settings.gate is None else settings.gate
    (mistakes := Mistakes()).add(gates.mistakes(asked, "gate", context))
    planned = Planned(())
    with mistakes.gathered():
        planned = _quantized(settings, context)
    mistakes.raise_any()
    return gates.gated(planned, asked, settings.gate_base, context)


def _quantized(settings: QuantizeSettings, context: PlanContext) -> Planned:
    model, contents = context.model(), context.contents(context.model().name)
    method = METHODS[settings.method]
    transform = method.transform if settings.transform == "auto" else settings.transform
    calibration: Text | None = None
    changes: tuple[Change, ...] = ()
    (mistakes := Mistakes()).add(_of_budget(settings, context))
    with mistakes.gathered():
        calibration = _calibration(settings, transform, context)
    with mistakes.gathered():
        changes = tuple(quantize_changes(contents, settings, context.source, context.key))
    mistakes.raise_any()
    effective = _effective(settings, transform, calibration)
    hessians = _hessians(settings, transform)
    needs = partial(
        quantize_footprint, contents, changes, calibration, hessians,
        in_turn=in_order(settings), one_file=False,
    )  # fmt: skip
    fitted = walked(needs, calibration, settings.batch_size, context)
    grid = f"{settings.grid} g{settings.group_size}"
    wanted = goal(settings.target_bpw, settings.target_size) or grid
    step = PlannedStep(
        id=context.id,
        verb="quantize",
        settings=effective.model_copy(update={"batch_size": fitted.way.batch_size}),
        inputs=(model,),
        key=context.key,
        writes=settings.format,
        seed=context.seed,
        calibration=calibration,
        held_out=context.held_out() if calibration else None,
        changes=changes,
        effort=quantize_effort(
            contents, changes, calibration, settings.solving,
            in_turn=in_order(settings), transform=transform != "none",
        ),
        footprint=fitted.footprint,
        arrangement=fitted.way.arrangement,
        summary=f"{settings.method} {wanted} -> {settings.format}",
    )  # fmt: skip
    if settings.has_budget:
        return _with_budget(step, settings, context)
    return _written(step, contents, settings)


def _hessians(settings: QuantizeSettings, transform: str) -> Hessians:
    """How many of a block's inputs are known in full at once."""
    if transform != "none":
        return "together"
    if not METHODS[settings.method].hessian:
        return "none"
    return "in turn" if in_order(settings) else "together"


def _effective(
    settings: QuantizeSettings, transform: str, calibration: Text | None
) -> QuantizeSettings:
    decided: dict[str, object] = {"transform": transform}
    if isinstance(solver := settings.solver, Searched) and solver.scale_search == "auto":
        search = "importance" if calibration else "mse"
        decided["solver"] = solver.model_copy(update={"scale_search": search})
    return settings.model_copy(update=decided)


def _with_budget(step: PlannedStep, settings: QuantizeSettings, context: PlanContext) -> Planned:
    """The step with options for each linear, after the allocation that chooses among them."""
    contents = context.contents(step.inputs[0].name)
    with context.source.at((*context.key, "candidates")):
        changes = tuple(with_options(step.changes, settings))
    _check_mix(changes, contents, settings, context)
    *before, planned = after_allocation(step, step.settings, changes, context)
    return _written(planned, contents, settings, before)


def _written(
    step: PlannedStep, contents: Contents, settings: QuantizeSettings,
    before: Sequence[PlannedStep] = (),
) -> Planned:  # fmt: skip
    """The step with what it rewrites in the config, and what it will have written."""
    config = quantize_config(contents, step.changes, settings)
    after = apply(contents, step.changes, config, format_id=step.writes)
    return Planned((*before, replace(step, config_changes=config)), after)


def _calibration(settings: QuantizeSettings, transform: str, context: PlanContext) -> Text | None:
    """The text of a quantize step; importance alone takes it where there is any."""
    method: Key = (*context.key, "method")
    if settings.has_budget:
        return context.calibration("a budget", method)
    if METHODS[settings.method].needs_calibration or transform != "none":
        return context.calibration(f"method {settings.method}", method)
    search = settings.solver.scale_search if isinstance(settings.solver, Searched) else "auto"
    if search not in ("auto", "importance"):
        return None
    wanted = search == "importance"
    what = "scale_search: importance" if wanted else None
    return context.calibration(what, (*context.key, "scale_search"))


def _of_budget(settings: QuantizeSettings, context: PlanContext) -> Iterator[RecipeError]:
    """Settings that do not go with a budget, or with none."""
    source, key = context.source, context.key
    if settings.candidates and not settings.has_budget:
        budget = source.says((*key, "target_bpw"), 4.5)
        yield source.error(CANDIDATES_ALONE, (*key, "candidates"), budget)
    for refused, name, message, hint in (
        (settings.target_bpw and settings.target_size, "target_size",
         "a step has one budget: target_bpw or target_size", None),
        (settings.head, "head", "a budget covers the linears in blocks, and not the head",
         source.says((*key, "head"), value=False)),
        (context.sequences < 2, "target_bpw", "a budget takes calibration text to measure on, too",
         source.says(("data", "calibration", "sequences"), 2)),
    ):  # fmt: skip
        if refused and settings.has_budget:
            yield source.error(message, (*key, name), hint)


def _check_mix(
    changes: Sequence[Change], contents: Contents, settings: QuantizeSettings,
    context: PlanContext,
) -> None:  # fmt: skip
    """Give neighbours different options: a config that cannot say that is found out now."""
    count, mixed = itertools.count(), []
    for change in changes:
        if change.options:
            change = replace(change, layout=change.options[next(count) % len(change.options)])
        mixed.append(change)
    key: Key = (*context.key, "format")
    check_config(mixed, contents.naming, settings.format, context.source, key)
