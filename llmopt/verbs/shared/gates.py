"""Quality gates, as plans ask for them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmopt.errors import Mistakes, RecipeError
from llmopt.evaluate.gates import parse
from llmopt.specs import lookup
from llmopt.specs.metrics import GATE_METRICS
from llmopt.step import MODEL, PlanContext, Planned

#: the gate against collapse and damage, whose limits follow from the bits
DEFAULT = "default"


def mistakes(
    gates: Sequence[str], name: str, context: PlanContext, *, alone: bool = False
) -> Iterator[RecipeError]:
    """Gates of the setting `name` that cannot be read, and held-out text that is not there.

    alone: there is nothing to compare with.
    """
    source = context.source
    for index, text in enumerate(gates):
        if text == DEFAULT and not alone:
            continue
        key = (*context.key, name, index)
        try:
            with source.at(key):
                named = parse(text).metric
                metric = lookup(GATE_METRICS, "metric", named)
        except RecipeError as error:
            yield error
            continue
        if alone and metric.needs_base:
            yield source.error(
                f"{named} says how a model compares with another, and there is none",
                key,
                "name the original to compare with",
            )
    if gates:
        with (found := Mistakes()).gathered():
            context.evaluation()
        yield from found


def gated(planned: Planned, gates: Sequence[str], base: str, context: PlanContext) -> Planned:
    """Planned steps, and after them one that holds the model that they leave to `gates`.

    base: "parent" to compare with what the step is made from, "model" with the recipe's model.
    """
    if not gates:
        return planned
    against = MODEL if base == MODEL else context.model().name
    settings = {
        "from": [context.id], "against": against, "gates": list(gates), "speed": False,
        "runtime": "torch",
    }  # fmt: skip
    steps = context.step(
        "bench", settings, "gate",
        key=(*context.key, "gate"), contents=planned.contents, judges=True,
    )  # fmt: skip
    return planned.after(*steps)
