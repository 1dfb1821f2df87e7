"""Written steps as planned ones: what they ask for besides, made visible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from llmopt.allocate.options import byte_budget, with_options
from llmopt.errors import Mistakes
from llmopt.model.change import TensorFate
from llmopt.model.contents import Contents
from llmopt.planner import checks
from llmopt.planner.graph import members
from llmopt.planner.steps import MODEL, PlannedStep
from llmopt.planner.texts import Texts
from llmopt.recipe import Recipe, Source
from llmopt.recipe.located import located
from llmopt.recipe.matrix import Expanded
from llmopt.recipe.source import Key
from llmopt.specs import FORMATS, METHODS
from llmopt.specs.base import FormatSpec
from llmopt.specs.formats import IMATRIX, PLAIN
from llmopt.specs.runtimes import AUTO, runtime_for
from llmopt.verbs.bench.settings import BenchSettings
from llmopt.verbs.convert import gguf_types as gguf
from llmopt.verbs.convert import layouts
from llmopt.verbs.convert.gguf_plan import GgufRequest, with_types
from llmopt.verbs.convert.settings import ConvertSettings, GgufSettings
from llmopt.verbs.quantize.changes import quantize_fates
from llmopt.verbs.quantize.settings import QuantizeSettings
from llmopt.verbs.shared.changes import check_config, contents_after, linear_names
from llmopt.verbs.shared.footprints import (
    allocate_footprint,
    bench_footprint,
    convert_footprint,
    quantize_footprint,
)

GATE_WINDOWS = 16


class Desugar:
    """Turns written steps into planned ones against one model's headers."""

    def __init__(
        self, recipe: Recipe, source: Source, ids: dict[str, list[str]], contents: Contents,
        outside: Mapping[str, Contents], name: str,
    ) -> None:  # fmt: skip
        self._recipe, self._source, self._ids, self._model = recipe, source, ids, contents
        self._outside, self._texts = outside, Texts(recipe, source, contents.config)
        self._name = name
        #: what steps planned so far will have written, those that write a model
        self._written: dict[str, Contents] = {}

    def steps(self, item: Expanded) -> list[PlannedStep]:
        """A written step, with the allocation before it and the gate after it that it asks for.

        Raises RecipeError about its first mistake, with the others that do not follow from it.
        """
        self._source = item.source
        mistakes, planned = Mistakes(), []
        mistakes.add(checks.of_gates(item, self._texts))
        with mistakes.gathered():
            planned = list(self._steps(item))
        mistakes.raise_any()
        return planned

    def _steps(self, item: Expanded) -> Iterator[PlannedStep]:
        settings = item.step.settings
        if isinstance(settings, BenchSettings):
            yield self.bench(item, settings)
            return
        if isinstance(settings, ConvertSettings):
            yield from self.converted(item, settings)
            return
        assert isinstance(settings, QuantizeSettings)
        step = self.quantize(item, settings)
        if settings.has_budget:
            yield from (steps := self._budgeted(step, settings))
            step = steps[-1]
        else:
            yield step
        if settings.gate:
            yield self.gate(item, settings.gate, step)

    def quantize(self, item: Expanded, settings: QuantizeSettings) -> PlannedStep:
        """The step alone; a budget's linears have settings that stand for their candidates."""
        place: Key = (*item.key, "quantize")
        parent, contents = self._parent(item, settings.from_)
        method = METHODS[settings.method]
        transform = method.transform if settings.transform == "auto" else settings.transform
        calibration, mistakes = None, Mistakes()
        fates: tuple[TensorFate, ...] = ()
        mistakes.add(checks.of_idle_settings(settings, self._source, place))
        sequences = self._recipe.data.calibration.sequences
        mistakes.add(checks.of_budget(settings, sequences, self._source, place))
        with mistakes.gathered():
            calibration = self._calibration(settings, transform, place)
        with mistakes.gathered():
            fates = tuple(quantize_fates(contents, settings, self._source, place))
        mistakes.raise_any()
        effective = settings.model_dump(by_alias=True, exclude={"from_", "gate"})
        for name in checks.METHOD_SETTINGS - method.settings:
            del effective[name]
        if effective.get("scale_search") == "auto":
            effective["scale_search"] = "importance" if calibration else "mse"
        effective |= {"transform": transform, "calibration": calibration, "seed": self._recipe.seed}
        self._written[item.step.id] = contents_after(contents, fates, settings.format)
        footprint = quantize_footprint(contents, fates, calibration, settings.batch_size)
        texts = self._texts.places() if calibration else {}
        return PlannedStep(
            item.step.id, "quantize", effective, (parent,), place, None, texts, fates, footprint
        )

    def _calibration(
        self, settings: QuantizeSettings, transform: str, place: Key
    ) -> dict[str, Any] | None:
        """The text of a quantize step; importance alone takes it where there is any."""
        needed = METHODS[settings.method].needs_calibration or transform != "none"
        if settings.has_budget:
            return self._texts.calibration("a budget", (*place, "method"))
        if needed:
            return self._texts.calibration(f"method {settings.method}", (*place, "method"))
        if settings.scale_search not in ("auto", "importance"):
            return None
        wanted = settings.scale_search == "importance"
        what = "scale_search: importance" if wanted else None
        return self._texts.calibration(what, (*place, "scale_search"))

    def converted(self, item: Expanded, settings: ConvertSettings) -> Iterator[PlannedStep]:
        """A conversion, and a gate where it rounds."""
        if settings.to == "gguf":
            yield from self.to_gguf(item, settings)
            return
        if settings.to == IMATRIX:
            yield self.importance(item, settings)
            return
        place: Key = (*item.key, "convert")
        parent, contents = self._parent(item, settings.from_)
        (mistakes := Mistakes()).add(checks.of_target(settings, contents, self._source, place))
        mistakes.raise_any()
        found = list(layouts.conversions(contents, settings))
        fates = tuple(each.fate for each in found)
        lost = next((each for each in found if each.loss), None)
        if lost and settings.exact:
            raise self._source.error(
                f"{lost.fate.name} cannot be converted exactly: {lost.loss}",
                (*place, "exact"),
                f"{self._source.says((*place, 'exact'), value=False)} it is rounded, and reported",
            )
        self._check_held(fates, contents, settings, place)
        check_config(fates, contents.naming, settings.to, self._source, (*place, "to"))
        mine = ConvertSettings.model_fields.keys() - GgufSettings.model_fields.keys()
        effective = settings.model_dump(by_alias=True, include=mine - {"from_", "gate"})
        self._written[item.step.id] = layouts.contents_after(contents, fates, settings)
        footprint = convert_footprint(contents, fates)
        step = PlannedStep(
            item.step.id, "convert", effective, (parent,), place, None, {}, fates, footprint
        )
        yield step
        rounds = settings.to != PLAIN and any(each.loss or each.doubtful for each in found)
        gates = settings.gate if settings.gate is not None else ["default"] if rounds else []
        if gates:
            yield self.gate(item, gates, step)

    def to_gguf(self, item: Expanded, settings: ConvertSettings) -> Iterator[PlannedStep]:
        """A conversion to GGUF, and a gate where it rounds weights to blocks."""
        place: Key = (*item.key, "convert")
        parent, contents = self._parent(item, settings.from_)
        request = GgufRequest(settings, self._source, place)
        request.check(contents)
        calibration = None
        if settings.imatrix is None and request.rounds:
            calibration = self._texts.calibration(*request.calibrated_for())
        found = request.wanted(contents, guided=bool(calibration or settings.imatrix))
        lost = request.conversions(contents, found)
        fates = tuple(each.fate for each in lost)
        effective = request.effective() | {
            "model_name": self._name.rpartition("/")[2], "calibration": calibration,
            "seed": self._recipe.seed,
        }  # fmt: skip
        texts = (self._texts.places() if calibration else {}) | request.places()
        self._written[item.step.id] = gguf.contents_after(contents, found)
        footprint = quantize_footprint(contents, fates, calibration, settings.batch_size)
        step = PlannedStep(
            item.step.id, "convert", effective, (parent,), place, None, texts, fates, footprint
        )
        if settings.has_budget:
            key = (*place, "candidates")
            options = located(self._source, key, lambda: list(with_types(fates, found, settings)))
            yield from (steps := self.allocated(step, options, settings))
            step = steps[-1]
        else:
            yield step
        rounds = any(each.loss and each.fate.quantize for each in lost)
        gates = settings.gate if settings.gate is not None else ["default"] if rounds else []
        if gates:
            yield self.gate(item, gates, step)

    def importance(self, item: Expanded, settings: ConvertSettings) -> PlannedStep:
        """An importance matrix of the parent's linears: no model, nothing is made from it."""
        place: Key = (*item.key, "convert")
        parent, contents = self._parent(item, settings.from_)
        request = GgufRequest(settings, self._source, place)
        allowed = {"from_", "to", "batch_size", *([] if settings.gate else ["gate"])}
        for name in sorted(settings.model_fields_set - allowed):
            raise self._source.error("an importance matrix has no such setting", (*place, name))
        found = request.wanted(contents, guided=True)
        calibration = self._texts.calibration("an importance matrix", (*place, "to"))
        effective = {
            "to": IMATRIX, "batch_size": settings.batch_size, "calibration": calibration,
            "seed": self._recipe.seed,
        }  # fmt: skip
        fates = tuple(each.fate for each in request.conversions(contents, found))
        footprint = quantize_footprint(contents, fates, calibration, settings.batch_size)
        return PlannedStep(
            item.step.id, "convert", effective, (parent,), place, None, self._texts.places(), (),
            replace(footprint, disk_bytes=0),
        )  # fmt: skip

    def _budgeted(self, step: PlannedStep, settings: QuantizeSettings) -> list[PlannedStep]:
        """A quantize step with a budget, and its allocation."""
        contents = self._contents_of(step.parents[0])
        key = (*step.key, "candidates")
        fates = located(self._source, key, lambda: list(with_options(step.fates, settings)))
        self._check_mix(fates, contents, settings, step.key)
        self._written[step.id] = contents_after(contents, fates, settings.format)
        return self.allocated(step, fates, settings)

    def allocated(
        self,
        step: PlannedStep,
        found: list[TensorFate],
        settings: QuantizeSettings | ConvertSettings,
    ) -> list[PlannedStep]:
        """A step with a budget: one that chooses settings, and one that quantizes with them.

        `found` are its fates, with the options of each linear.
        """
        fates, contents = tuple(found), self._contents_of(step.parents[0])
        spec = FORMATS[step.settings["format"]]
        place = (*step.key, "target_bpw" if settings.target_bpw else "target_size")
        least = sum(_smallest(fate, spec) for fate in fates)
        if (budget := byte_budget(fates, step.settings)) < least:
            raise self._source.error(
                f"the budget leaves {max(budget, 0):,} bytes for the quantized linears, "
                f"and the smallest candidates take {least:,}",
                place,
                "raise the target, or allow smaller candidates",
            )
        footprint = allocate_footprint(contents, fates, step.settings)
        name = f"{step.id}.allocation"
        step = replace(step, fates=fates)
        choosing = replace(step, id=name, verb="allocate", footprint=footprint)
        return [choosing, replace(step, parents=(*step.parents, name))]

    def bench(self, item: Expanded, settings: BenchSettings) -> PlannedStep:
        """A measurement of what is named, or of all that was written so far."""
        place: Key = (*item.key, "bench")
        measured = [
            p for name in settings.from_ for p in members(name, self._ids, item, self._source)
        ]
        for parent in measured:
            if parent not in {MODEL, *self._written, *self._outside}:
                raise self._source.error(f"{parent!r} is no model", (*place, "from"))
        if not measured:
            measured = [MODEL, *self._written]
        against = settings.against
        if against not in (None, MODEL) and against not in self._written:
            raise self._source.error(f"{against!r} is not one step's model", (*place, "against"))
        parents = tuple(dict.fromkeys([*([against] if against else []), *measured]))
        effective = settings.model_dump(by_alias=True, exclude={"runtime"}) | {
            "from": list(dict.fromkeys(measured)),
            "runtimes": self._runtimes(settings, measured, (*place, "runtime")),
            "evaluation": self._texts.evaluation(),
            "seed": self._recipe.seed,
        }
        if settings.speed:
            effective |= self._texts.new_tokens(settings, (*place, "new_tokens"))
        footprint = bench_footprint(
            self._model, len(parents), effective["evaluation"], speed=settings.speed
        )
        return PlannedStep(
            item.step.id,
            "bench",
            effective,
            parents,
            place,
            None,
            self._texts.places(),
            (),
            footprint,
        )

    def _runtimes(self, settings: BenchSettings, measured: list[str], key: Key) -> dict[str, str]:
        """What runs each model, going by what is installed here.

        The base need not run on what those that are compared with it do.
        """
        base, wanted = settings.against, settings.runtime
        others = [name for name in measured if name != base]
        asked = dict.fromkeys(others, wanted)
        if base is not None:
            asked[base] = AUTO if others else wanted
        known = {**self._outside, **self._written, MODEL: self._model}
        return {
            name: located(
                self._source, key,
                lambda name=name, runtime=runtime: runtime_for(runtime, known[name].kind),
            )
            for name, runtime in asked.items()
        }  # fmt: skip

    def gate(self, item: Expanded, gates: list[str], step: PlannedStep) -> PlannedStep:
        """The bench step that decides whether a quantized model may be built upon."""
        place: Key = (*item.key, item.step.verb, "gate")
        settings = BenchSettings(from_=[step.id], speed=False)
        effective = settings.model_dump(by_alias=True, exclude={"runtime"}) | {
            "gates": gates,
            "runtimes": {MODEL: "torch", step.id: "torch"},
            "evaluation": self._texts.evaluation(GATE_WINDOWS),
            "seed": self._recipe.seed,
        }
        footprint = bench_footprint(self._model, 2, effective["evaluation"], speed=False)
        footprint = replace(footprint, disk_bytes=0)
        parents = (MODEL, step.id)
        name = f"{step.id}.gate"
        return PlannedStep(
            name, "bench", effective, parents, place, step.id, self._texts.places(), (), footprint
        )

    def _check_held(
        self,
        fates: tuple[TensorFate, ...],
        contents: Contents,
        settings: ConvertSettings,
        place: Key,
    ) -> None:
        """RecipeError where a format would hold not one of the linears."""
        if settings.to == PLAIN or any(fate.quantize for fate in fates):
            return
        linears = linear_names(contents.naming, head=False)
        first = next(f for f in fates if f.name.removesuffix(".weight") in linears)
        raise self._source.error(
            f"no linear can be in format {settings.to}: {first.name}: {first.why}",
            (*place, "group_size" if "groups of" in first.why else "to"),
        )

    def _check_mix(
        self,
        fates: tuple[TensorFate, ...],
        contents: Contents,
        settings: QuantizeSettings,
        place: Key,
    ) -> None:
        """Give neighbours different options: a config that cannot say that is found out now."""
        count, mixed = itertools.count(), []
        for fate in fates:
            if fate.options:
                fate = replace(fate, quantize=fate.options[next(count) % len(fate.options)])
            mixed.append(fate)
        check_config(mixed, contents.naming, settings.format, self._source, (*place, "format"))

    def _contents_of(self, parent: str) -> Contents:
        return self._model if parent == MODEL else self._written[parent]

    def _parent(self, item: Expanded, name: str) -> tuple[str, Contents]:
        """The one model that a step is made from: its id, and what it holds."""
        place: Key = (*item.key, item.step.verb, "from")
        found = members(name, self._ids, item, self._source)
        if len(found) > 1:
            raise self._source.error(
                f"{name!r} is {len(found)} models", place, f"take one: {', '.join(found)}"
            )
        if found[0] != MODEL and found[0] not in self._written:
            raise self._source.error(f"{name!r} is no model", place, "from: model")
        return found[0], self._contents_of(found[0])


def _smallest(fate: TensorFate, spec: FormatSpec) -> int:
    """The fewest bytes that a linear's options take; 0 for other tensors."""
    rows, cols = (*fate.shape, 0, 0)[:2]
    return min((option.bytes((rows, cols), spec) for option in fate.options), default=0)
