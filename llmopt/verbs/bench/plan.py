"""What a bench measures, on which engine, on which text. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmopt.errors import Mistakes
from llmopt.recipe.source import Key
from llmopt.specs.runtimes import AUTO, runtime_for
from llmopt.step import MODEL, PlanContext, Planned, PlannedStep, StepInput
from llmopt.verbs.bench.settings import Benchmark, BenchSettings
from llmopt.verbs.shared import gates
from llmopt.verbs.shared.effort import bench_effort
from llmopt.verbs.shared.fitting import evaluated
from llmopt.verbs.shared.footprints import bench_footprint

BASE = "base"
#: windows that a gate is judged on, at most
GATE_WINDOWS = 16
#: tokens of context that a prompt and what is timed after it need
_SHORTEST = 4


def plan(settings: BenchSettings, context: PlanContext) -> Planned:
    """A measurement of what is named, or of all that was written so far."""
    mistakes = Mistakes()
    if context.judges is None:  # else who asked has looked at them
        alone = settings.against is None
        mistakes.add(gates.mistakes(settings.gates, "gates", context, alone=alone))
    with mistakes.gathered():
        step = _step(settings, context)
    mistakes.raise_any()
    return Planned((step,))


def _step(settings: BenchSettings, context: PlanContext) -> PlannedStep:
    base, measured = _inputs(settings, context)
    names = [each.name for each in measured]
    new_tokens, notes = settings.new_tokens, tuple[str, ...]()
    if settings.speed and (new_tokens := _new_tokens(settings, context)) < settings.new_tokens:
        notes = (f"speed is that of {new_tokens} new tokens, for want of room in the context",)
    evaluation = context.evaluation(GATE_WINDOWS if context.judges else None)
    inputs = (*([base] if base else []), *measured)
    said = f"gate: {', '.join(settings.gates)}"
    summary = said if context.judges else f"bench {', '.join(names)}"
    models = list(dict.fromkeys(each.name for each in inputs))
    needs = partial(
        bench_footprint, [context.contents(name) for name in models], evaluation,
        keeps=context.judges is None,
    )  # fmt: skip
    untimed = context.source.says((*context.key, "speed"), value=False)
    remedies = {untimed: partial(needs, speed=False)} if settings.speed else {}
    fitted = evaluated(partial(needs, speed=settings.speed), evaluation, context, remedies)
    return PlannedStep(
        id=context.id,
        verb="bench",
        settings=Benchmark(
            runtimes=_runtimes(settings, base, names, context),
            speed=settings.speed,
            new_tokens=new_tokens,
            gates=settings.gates,
        ),
        inputs=inputs,
        key=context.key,
        writes="bench",
        seed=context.seed,
        evaluation=evaluation,
        effort=bench_effort(
            [context.contents(name) for name in dict.fromkeys(names)],
            context.contents(base.name) if base else None, evaluation,
            new_tokens=new_tokens, speed=settings.speed,
            together=not fitted.way.arrangement.whole_models,
        ),
        footprint=fitted.footprint,
        arrangement=fitted.way.arrangement,
        summary=summary,
        notes=notes,
    )  # fmt: skip


def _inputs(
    settings: BenchSettings, context: PlanContext
) -> tuple[StepInput | None, Sequence[StepInput]]:
    """The base, and what is measured: all that was written so far, where nothing is named."""
    for role, key in ((MODEL, "from"), (BASE, "against")):
        for each in context.inputs(role):
            if not context.is_model(each.name):
                what = "is no model" if role == MODEL else "is not one step's model"
                raise context.source.error(f"{each.name!r} {what}", (*context.key, key))
    base = context.model(BASE) if settings.against is not None else None
    measured = context.inputs(MODEL)
    return base, measured or tuple(StepInput(MODEL, name) for name in context.models())


def _runtimes(
    settings: BenchSettings, base: StepInput | None, measured: Sequence[str], context: PlanContext
) -> dict[str, str]:
    """What runs each model, going by what is installed here.

    The base need not run on what those that are compared with it do.
    """
    against, wanted = base.name if base else None, settings.runtime
    others = [name for name in measured if name != against]
    asked = dict.fromkeys(others, wanted)
    if against is not None:
        asked[against] = AUTO if others and context.judges is None else wanted
    key: Key = (*context.key, "runtime")
    found = {}
    for name, runtime in asked.items():
        with context.source.at(key):
            found[name] = runtime_for(runtime, context.contents(name).kind)
    return found


def _new_tokens(settings: BenchSettings, context: PlanContext) -> int:
    """Tokens decoded for speed after a prompt; a default that does not fit the context is cut.

    RecipeError for a number that was asked for.
    """
    length, wanted = context.context_length, settings.new_tokens
    if length is None or wanted < length:
        return wanted
    if "new_tokens" in settings.model_fields_set or length < _SHORTEST:
        raise context.source.error(
            f"{wanted:,} tokens after a prompt do not fit the model's context of {length:,}",
            (*context.key, "new_tokens"),
            f"at most {length - 1:,}" if length >= _SHORTEST else "measure without speed",
        )
    return length // 2
