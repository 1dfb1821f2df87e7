"""What is wrong with a step whatever the rest of the recipe says: all of it, not the first."""

from __future__ import annotations

from collections.abc import Iterator

from llmopt.allocate.options import CANDIDATES_ALONE
from llmopt.errors import Mistakes, RecipeError
from llmopt.evaluate.gates import parse
from llmopt.model.contents import Contents
from llmopt.planner.texts import Texts
from llmopt.recipe import Source
from llmopt.recipe.located import located
from llmopt.recipe.matrix import Expanded
from llmopt.recipe.source import Key
from llmopt.specs import CHECKPOINT, FORMATS, GRIDS, METHODS, METRICS, lookup
from llmopt.specs.formats import PLAIN
from llmopt.specs.metrics import needs_base
from llmopt.verbs.bench.settings import BenchSettings
from llmopt.verbs.convert.settings import ConvertSettings, GgufSettings
from llmopt.verbs.quantize.settings import QuantizeSettings

METHOD_SETTINGS: frozenset[str] = frozenset().union(*(m.settings for m in METHODS.values()))


def of_gates(item: Expanded, texts: Texts) -> Iterator[RecipeError]:
    """Gates that cannot be read, and held-out text that is not there."""
    settings, place, source = item.step.settings, (*item.key, item.step.verb), item.source
    bench = isinstance(settings, BenchSettings)
    alone = isinstance(settings, BenchSettings) and settings.against is None
    gates: list[str] | None = getattr(settings, "gates" if bench else "gate", None)
    for index, text in enumerate(gates or ()):
        if text != "default" or bench:
            key = (*place, "gates" if bench else "gate", index)
            try:
                gate = located(source, key, lambda text=text: parse(text))
                located(source, key, lambda gate=gate: lookup(METRICS, "metric", gate.metric))
            except RecipeError as error:
                yield error
                continue
            if alone and needs_base(gate.metric):
                yield source.error(
                    f"{gate.metric} says how a model compares with another, and there is none",
                    key,
                    "name the original to compare with",
                )
    if bench or gates:
        with (mistakes := Mistakes()).gathered():
            texts.evaluation()
        yield from mistakes


def of_idle_settings(
    settings: QuantizeSettings, source: Source, place: Key
) -> Iterator[RecipeError]:
    """A setting that the method does not read is a mistake, not a decoration."""
    used = METHODS[settings.method].settings
    for name in sorted((METHOD_SETTINGS & settings.model_fields_set) - used):
        yield source.error(
            f"method {settings.method} has no such setting",
            (*place, name),
            f"{settings.method} reads: {', '.join(sorted(used))}",
        )


def of_budget(
    settings: QuantizeSettings, sequences: int, source: Source, place: Key
) -> Iterator[RecipeError]:
    """Settings that do not go with a budget, or with none."""
    if settings.candidates and not settings.has_budget:
        budget = source.says((*place, "target_bpw"), 4.5)
        yield source.error(CANDIDATES_ALONE, (*place, "candidates"), budget)
    for refused, key, message, hint in (
        (settings.target_bpw and settings.target_size, "target_size",
         "a step has one budget: target_bpw or target_size", None),
        (settings.head, "head", "a budget covers the linears in blocks, and not the head",
         source.says((*place, "head"), value=False)),
        (sequences < 2, "target_bpw", "a budget takes calibration text to measure on, too",
         source.says(("data", "calibration", "sequences"), 2)),
    ):  # fmt: skip
        if refused and settings.has_budget:
            yield source.error(message, (*place, key), hint)


def of_target(
    settings: ConvertSettings, contents: Contents, source: Source, place: Key
) -> Iterator[RecipeError]:
    """Settings that the target of a conversion cannot have."""
    for name in sorted(GgufSettings.model_fields.keys() & settings.model_fields_set):
        yield source.error("only conversions to gguf have this setting", (*place, name))
    if settings.to == PLAIN:
        for name in ("grid", "group_size", "symmetric"):
            if getattr(settings, name) is not None:
                yield source.error("plain tensors have no such setting", (*place, name))
        if contents.format is None and contents.kind == CHECKPOINT:
            yield source.error("the model has plain tensors already", (*place, "to"))
        return
    spec = FORMATS[settings.to]
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
