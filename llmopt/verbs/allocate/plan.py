"""An allocation: what a budget leaves for the linears, checked before work. No torch."""

from __future__ import annotations

from functools import partial

from llmopt.model.change import Change
from llmopt.specs import FORMATS
from llmopt.specs.base import FormatSpec
from llmopt.step import PlanContext, Planned, PlannedStep
from llmopt.verbs.allocate.settings import AllocateSettings
from llmopt.verbs.shared.budget import byte_budget, goal
from llmopt.verbs.shared.effort import allocate_effort
from llmopt.verbs.shared.fitting import walked
from llmopt.verbs.shared.footprints import allocate_footprint


def plan(settings: AllocateSettings, context: PlanContext) -> Planned:
    """The step that chooses among the options that the asking step gives each linear."""
    model, asking = context.model(), settings.asking
    spec = FORMATS[asking.solving.format]
    least = sum(_smallest(change, spec) for change in context.changes)
    budget = byte_budget(context.changes, asking.target_bpw, asking.target_size)
    key = (*context.key, "target_bpw" if asking.target_bpw else "target_size")
    if budget < least:
        raise context.source.error(
            f"the budget leaves {max(budget, 0):,} bytes for the quantized linears, "
            f"and the smallest candidates take {least:,}",
            key,
            "raise the target, or allow smaller candidates",
        )
    contents = context.contents(model.name)
    if contents.family.stacks:
        raise context.source.error(
            f"what {contents.family.id} experts cost in divergence cannot be measured: "
            "they share tensors",
            key,
            "the same bits for all linears, or overrides, need no measure",
        )
    calibration = context.calibration("a budget", key)
    assert calibration is not None
    needs = partial(allocate_footprint, contents, context.changes, calibration)
    fitted = walked(needs, calibration, asking.batch_size, context)
    asking = asking.model_copy(update={"batch_size": fitted.way.batch_size})
    return Planned((
        PlannedStep(
            id=context.id,
            verb="allocate",
            settings=settings.model_copy(update={"asking": asking}),
            inputs=(model,),
            key=context.key,
            writes="allocation",
            seed=context.seed,
            calibration=calibration,
            held_out=context.held_out(),
            changes=context.changes,
            effort=allocate_effort(contents, context.changes, calibration, asking.solving),
            footprint=fitted.footprint,
            arrangement=fitted.way.arrangement,
            summary=f"choose settings for {goal(asking.target_bpw, asking.target_size)}",
        ),
    ))  # fmt: skip


def _smallest(change: Change, spec: FormatSpec) -> int:
    """The fewest bytes that a linear's options take; 0 for other tensors."""
    rows, cols = (*change.shape, 0, 0)[:2]
    return min((option.bytes((rows, cols), spec) for option in change.options), default=0)
