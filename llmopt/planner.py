"""plan(recipe): desugar, check, predict, from specs and file headers alone. No torch."""

from __future__ import annotations

import graphlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llmopt import artifact, conversion
from llmopt.allocate.options import byte_budget, parse_size, with_options
from llmopt.corpora import source as corpora
from llmopt.errors import RecipeError, RequestError
from llmopt.evaluate.gates import parse
from llmopt.fates import TensorFate, check_config, contents_after, quantize_fates
from llmopt.formats.quantization import Contents, read_contents
from llmopt.predict import (
    NOTHING,
    Footprint,
    allocate_footprint,
    bench_footprint,
    convert_footprint,
    quantize_footprint,
)
from llmopt.recipe import BenchStep, ConvertStep, QuantizeStep, Recipe, Source, Verb
from llmopt.recipe.matrix import Expanded, expand
from llmopt.recipe.source import Key
from llmopt.report import origin
from llmopt.sources import ModelSource, resolve
from llmopt.specs import FORMATS, METHODS, METRICS, lookup, suggestion
from llmopt.specs.base import FormatSpec
from llmopt.specs.formats import PLAIN

#: what a step does; some verbs no recipe names, the planner makes their steps
PlannedVerb = Verb | Literal["allocate"]
MODEL = "model"
GATE_WINDOWS = 16
#: raised when a change to a stage makes its old results no longer what it would write
VERB_VERSIONS: dict[PlannedVerb, int] = {"quantize": 2, "convert": 1, "bench": 1, "allocate": 1}


@dataclass(frozen=True)
class PlannedStep:
    """One step of the DAG, with nothing left to decide.

    `settings` are effective: every default filled in, texts by name and digest and never by their
    place, which is in `texts`. `parents` are ids of steps, or "model". `gates_of` names the step
    whose result this one judges.
    """

    id: str
    verb: PlannedVerb
    settings: dict[str, Any]
    parents: tuple[str, ...]
    key: Key
    gates_of: str | None = None
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)
    fates: tuple[TensorFate, ...] = ()
    footprint: Footprint = NOTHING

    def digest_key(self, digests: dict[str, str]) -> str:
        """The step's key, given the digest of each parent."""
        parents = {name: digests[name] for name in self.parents}
        return artifact.step_key(self.verb, VERB_VERSIONS[self.verb], self.settings, parents)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can run. `outputs` says where each one's result goes."""

    recipe: Recipe
    model: ModelSource
    steps: tuple[PlannedStep, ...]
    outputs: dict[str, Path] = field(default_factory=dict)
    externals: dict[str, Path] = field(default_factory=dict)

    def by_id(self, name: str) -> PlannedStep:
        """The step with this id."""
        return next(step for step in self.steps if step.id == name)

    def folder_of(self, name: str) -> Path:
        """Where a parent lies: the model, an artifact from outside, or a step's result."""
        if name == MODEL:
            return self.model.folder
        return self.externals.get(name) or self.outputs[name]


def plan(recipe: Recipe, source: Source, out: Path, *, fetch: bool = True) -> Plan:
    """Check everything that can be checked before work, and say what would be done.

    `out` is the folder of a recipe's results, or, for a recipe of one written step that the
    command line made, of that step's. Raises RecipeError naming line, key and layer.
    """
    expanded, ids = expand(recipe, source)
    outside = _outside(expanded, ids)
    ids |= {typed: [name] for typed, name in outside.items()}
    ordered = _ordered(expanded, ids, source, set(outside.values()))
    model = _located(
        source, ("model",), lambda: resolve(recipe.model, recipe.revision, fetch=fetch)
    )
    contents = _located(source, ("model",), lambda: read_contents(model.folder))
    if any(item.step.verb != "bench" for item in expanded):
        _located(source, ("model",), lambda: origin.declared(model.folder))
    planner = _Planner(recipe, source, ids, contents, set(outside.values()))
    steps = [planned for item in ordered for planned in planner.desugar(item)]
    single = source.file == "<command line>" and len(expanded) == 1
    outputs = {s.id: _place(s, out, single=single) for s in steps if s.gates_of is None}
    for path in outputs.values():
        artifact.check_destination(path)
        if path.resolve() == model.folder.resolve():
            raise RequestError(f"{path} is the input model", hint="choose another -o")
    externals = {name: Path(typed) for typed, name in outside.items()}
    return Plan(recipe, model, tuple(steps), outputs, externals)


def _place(step: PlannedStep, out: Path, *, single: bool) -> Path:
    """A step's folder. What a lone step is prepared by stands hidden beside it."""
    if not single:
        return out / step.id
    return out.with_name(f".{out.name}.allocation") if step.verb == "allocate" else out


def states(plan: Plan) -> dict[str, str]:
    """What a run would do with each step now: reuse it, run it, or find out later.

    A foreign model that was never hashed here has no digest yet, and no weights are read to
    make one: then what stands on disk is checked when the plan runs.
    """
    digests: dict[str, str | None] = {}
    found: dict[str, str] = {}
    for step in plan.steps:
        for name in step.parents:
            if name not in digests:  # not a step: the model, or an artifact from outside
                digests[name] = artifact.known_digest(plan.folder_of(name))
        known = {name: digest for name in step.parents if (digest := digests[name])}
        target = step.gates_of or step.id
        folder = plan.outputs[target]
        manifest = artifact.read_manifest(folder) if folder.is_dir() else {}
        if len(known) < len(step.parents):
            unhashed = any(found.get(name) in (None, "unknown") for name in step.parents)
            found[step.id] = "unknown" if manifest and unhashed else "to run"
            digests.setdefault(step.id, None)
            continue
        key = step.digest_key(known)
        if step.gates_of:
            done = manifest.get("gate", {}).get("key") == key
        else:
            done = artifact.complete(folder, key)
            digests[step.id] = manifest["digest"] if done else None
        found[step.id] = "done" if done else "to run"
    return found


def _located(source: Source, key: Key, action: Any) -> Any:
    """Run `action`; a RequestError gets the place in the recipe that asked for it."""
    try:
        return action()
    except RecipeError:
        raise
    except RequestError as error:
        raise source.error(error.message, key, error.hint) from None


def _outside(expanded: list[Expanded], ids: dict[str, list[str]]) -> dict[str, str]:
    """Folders that bench steps name instead of steps: as typed -> a short name of its own."""
    outside: dict[str, str] = {}
    taken = {MODEL, *(item.step.id for item in expanded)}
    for item in expanded:
        for typed in item.step.settings.from_ if item.step.verb == "bench" else ():
            if typed in ids or typed in taken or typed in outside or not Path(typed).is_dir():
                continue
            stem = Path(typed).resolve().name
            name, number = stem, 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            outside[typed] = name
    return outside


def _ordered(
    expanded: list[Expanded], ids: dict[str, list[str]], source: Source, outside: set[str]
) -> list[Expanded]:
    """Steps sorted so that parents come first, otherwise as written."""
    by_id = {item.step.id: item for item in expanded}
    graph = {}
    for item in expanded:
        parents = [p for name in _named_parents(item) for p in _members(name, ids, item, source)]
        graph[item.step.id] = [p for p in parents if p != MODEL and p not in outside]
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1]
        raise source.error(
            f"steps wait for each other: {' -> '.join(reversed(cycle))}",
            (*by_id[cycle[0]].key, by_id[cycle[0]].step.verb, "from"),
        ) from None
    return [by_id[name] for name in order]


def _named_parents(item: Expanded) -> list[str]:
    settings = item.step.settings
    if not isinstance(settings, BenchStep):
        return [settings.from_]
    return [*settings.from_, *([settings.against] if settings.against else [])]


def _members(name: str, ids: dict[str, list[str]], item: Expanded, source: Source) -> list[str]:
    """The steps that `name` stands for: itself, a matrix's members, or the model."""
    if name == MODEL:
        return [MODEL]
    if name in ids:
        return ids[name]
    known = {member for members in ids.values() for member in members}
    if name in known:
        return [name]
    settings = item.step.settings
    against = isinstance(settings, BenchStep) and name == settings.against
    raise source.error(
        f"no step is called {name!r}",
        (*item.key, item.step.verb, "against" if against else "from"),
        suggestion(name, {MODEL, *ids, *known}),
    )


class _Planner:
    """Turns written steps into planned ones against one model's headers."""

    def __init__(
        self, recipe: Recipe, source: Source, ids: dict[str, list[str]], contents: Contents,
        outside: set[str],
    ) -> None:  # fmt: skip
        self.recipe, self.source, self.ids, self.model = recipe, source, ids, contents
        self.outside = outside
        self.digests: dict[tuple[str, str, str], str] = {}
        #: what steps planned so far will have written, those that write a model
        self.written: dict[str, Contents] = {}

    def desugar(self, item: Expanded) -> Iterator[PlannedStep]:
        """A written step, with the allocation before it and the gate after it that it asks for."""
        settings = item.step.settings
        if isinstance(settings, BenchStep):
            yield self.bench(item, settings)
            return
        if isinstance(settings, ConvertStep):
            yield from self.converted(item, settings)
            return
        if settings.has_budget:
            self._check_budget(settings, (*item.key, "quantize"))
        step = self.quantize(item, settings)
        if settings.has_budget:
            yield from (steps := self.allocated(step, settings))
            step = steps[-1]
        else:
            yield step
        if settings.gate:
            yield self.gate(item, settings.gate, step)

    def quantize(self, item: Expanded, settings: QuantizeStep) -> PlannedStep:
        place: Key = (*item.key, "quantize")
        parent, contents = self._parent(item, settings.from_)
        method = METHODS[settings.method]
        self._refuse_idle_settings(settings, method.settings, place)
        transform = method.transform if settings.transform == "auto" else settings.transform
        needed = method.needs_calibration or settings.has_budget or transform != "none"
        calibration = self._calibration(settings, needed, place)
        effective = settings.model_dump(by_alias=True, exclude={"from_", "gate"})
        for name in _METHOD_SETTINGS - method.settings:
            del effective[name]
        if effective.get("scale_search") == "auto":
            effective["scale_search"] = "importance" if calibration else "mse"
        effective |= {"transform": transform, "calibration": calibration, "seed": self.recipe.seed}
        fates = tuple(quantize_fates(contents, settings, self.source, place))
        self.written[item.step.id] = contents_after(contents, fates, settings.format)
        footprint = quantize_footprint(contents, fates, calibration, settings.batch_size)
        texts = self._texts() if calibration else {}
        return PlannedStep(
            item.step.id, "quantize", effective, (parent,), place, None, texts, fates, footprint
        )

    def converted(self, item: Expanded, settings: ConvertStep) -> Iterator[PlannedStep]:
        """A conversion, and a gate where it rounds."""
        place: Key = (*item.key, "convert")
        parent, contents = self._parent(item, settings.from_)
        self._check_target(settings, contents, place)
        found = list(conversion.conversions(contents, settings))
        fates = tuple(each.fate for each in found)
        lost = next((each for each in found if each.loss), None)
        if lost and settings.exact:
            raise self.source.error(
                f"{lost.fate.name} cannot be converted exactly: {lost.loss}",
                (*place, "exact"),
                "exact: false rounds it, and reports the error",
            )
        check_config(fates, contents.naming, settings.to, self.source, (*place, "to"))
        effective = settings.model_dump(by_alias=True, exclude={"from_", "gate"})
        self.written[item.step.id] = conversion.contents_after(contents, fates, settings)
        footprint = convert_footprint(contents, fates)
        step = PlannedStep(
            item.step.id, "convert", effective, (parent,), place, None, {}, fates, footprint
        )
        yield step
        rounds = lost is not None and settings.to != PLAIN
        gates = settings.gate if settings.gate is not None else ["default"] if rounds else []
        if gates:
            yield self.gate(item, gates, step)

    def _check_target(self, settings: ConvertStep, contents: Contents, place: Key) -> None:
        """RecipeError for settings that the target cannot have."""
        if settings.to == PLAIN:
            for name in ("grid", "group_size", "symmetric"):
                if getattr(settings, name) is not None:
                    raise self.source.error("plain tensors have no such setting", (*place, name))
            if contents.format is None:
                raise self.source.error("the model has plain tensors already", (*place, "to"))
            return
        spec = FORMATS[settings.to]
        if settings.grid is not None and settings.grid not in spec.grids:
            raise self.source.error(
                f"format {spec.id} cannot hold grid {settings.grid}",
                (*place, "grid"),
                f"it holds {sorted(spec.grids)}",
            )
        if spec.group_sizes is not None and settings.group_size not in (None, *spec.group_sizes):
            raise self.source.error(
                f"format {spec.id} has no groups of {settings.group_size}",
                (*place, "group_size"),
                f"it knows: {', '.join(map(str, sorted(spec.group_sizes)))}",
            )

    def allocated(self, step: PlannedStep, settings: QuantizeStep) -> list[PlannedStep]:
        """A step with a budget: one that chooses settings, and one that quantizes with them."""
        contents = self.model if step.parents[0] == MODEL else self.written[step.parents[0]]
        fates = tuple(
            _located(self.source, (*step.key, "candidates"),
                     lambda: list(with_options(step.fates, settings)))
        )  # fmt: skip
        self._check_mix(fates, contents, settings, step.key)
        place = (*step.key, "target_bpw" if settings.target_bpw else "target_size")
        size = settings.target_size
        if size is not None:
            size = _located(self.source, place, lambda: parse_size(size))
        effective = step.settings | {"target_size": size}
        least = sum(_smallest(fate, FORMATS[settings.format]) for fate in fates)
        if (budget := byte_budget(fates, effective)) < least:
            raise self.source.error(
                f"the budget leaves {max(budget, 0):,} bytes for the quantized linears, "
                f"and the smallest candidates take {least:,}",
                place,
                "raise the target, or allow smaller candidates",
            )
        self.written[step.id] = contents_after(contents, fates, settings.format)
        footprint = allocate_footprint(contents, fates, step.settings)
        name = f"{step.id}.allocation"
        step = replace(step, settings=effective, fates=fates)
        choosing = replace(step, id=name, verb="allocate", footprint=footprint)
        return [choosing, replace(step, parents=(*step.parents, name))]

    def _check_mix(
        self, fates: tuple[TensorFate, ...], contents: Contents, settings: QuantizeStep, place: Key
    ) -> None:
        """Give neighbours different options: a config that cannot say that is found out now."""
        count, mixed = itertools.count(), []
        for fate in fates:
            if fate.options:
                fate = replace(fate, quantize=fate.options[next(count) % len(fate.options)])
            mixed.append(fate)
        check_config(mixed, contents.naming, settings.format, self.source, (*place, "format"))

    def _check_budget(self, settings: QuantizeStep, place: Key) -> None:
        for refused, key, message, hint in (
            (settings.target_bpw and settings.target_size, "target_size",
             "a step has one budget: target_bpw or target_size", None),
            (settings.head, "head", "a budget covers the linears in blocks, and not the head",
             "head: false"),
            (self.recipe.data.calibration.sequences < 2, "target_bpw",
             "a budget takes calibration text to measure on, too",
             "data.calibration.sequences: at least 2"),
        ):  # fmt: skip
            if refused:
                raise self.source.error(message, (*place, key), hint)

    def _parent(self, item: Expanded, name: str) -> tuple[str, Contents]:
        """The one model that a step is made from: its id, and what it holds."""
        place: Key = (*item.key, item.step.verb, "from")
        members = _members(name, self.ids, item, self.source)
        if len(members) > 1:
            raise self.source.error(
                f"{name!r} is {len(members)} models", place, f"take one: {', '.join(members)}"
            )
        if members[0] != MODEL and members[0] not in self.written:
            raise self.source.error(f"{name!r} is no model", place, "from: model")
        return members[0], self.model if members[0] == MODEL else self.written[members[0]]

    def _refuse_idle_settings(
        self, settings: QuantizeStep, used: frozenset[str], place: Key
    ) -> None:
        """A setting that the method does not read is a mistake, not a decoration."""
        for name in sorted((_METHOD_SETTINGS & settings.model_fields_set) - used):
            raise self.source.error(
                f"method {settings.method} has no such setting",
                (*place, name),
                f"{settings.method} reads: {', '.join(sorted(used))}",
            )

    def _calibration(
        self, settings: QuantizeStep, needed: bool, place: Key
    ) -> dict[str, Any] | None:
        data = self.recipe.data.calibration
        source = data.source or ("demo" if self.recipe.model == "demo" and needed else "")
        if not source:
            if needed or settings.scale_search == "importance":
                what = f"method {settings.method}" if needed else "scale_search: importance"
                what = "a budget" if settings.has_budget else what
                raise self.source.error(
                    f"{what} needs calibration text",
                    (*place, "method" if needed else "scale_search"),
                    "give data.calibration.source (--calibration FILE, or demo for Python text)",
                )
            return None
        if not needed and settings.scale_search not in ("auto", "importance"):
            return None
        length = min(data.length, self.context)
        key: Key = ("data", "calibration", "source")
        digest = _located(self.source, key, lambda: self._digest(source, data.field, "calibration"))
        return data.model_dump() | {
            "source": text_name(source), "length": length, "digest": digest
        }  # fmt: skip

    def _texts(self) -> dict[str, dict[str, Any]]:
        """Where the recipe's texts lie, and as much of them as the model's context allows."""
        found = {}
        for name, data in (
            ("calibration", self.recipe.data.calibration),
            ("evaluation", self.recipe.data.evaluation),
        ):
            length = min(data.length, self.context)
            source = data.source or "demo"
            found[name] = data.model_dump() | {"source": source, "length": length}
        return found

    @property
    def context(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            value = self.model.config.get(name)
            if isinstance(value, int) and value > 0:
                return value
        return 1 << 30

    def _digest(self, source: str, field: str, split: corpora.Split) -> str:
        asked = (source, field, split)
        if asked not in self.digests:  # many steps share their text
            self.digests[asked] = corpus_digest(source, field, split)
        return self.digests[asked]

    def _evaluation(self, windows: int | None = None) -> dict[str, Any]:
        data = self.recipe.data.evaluation
        length = min(data.length, self.context)
        key: Key = ("data", "evaluation", "source")
        digest = _located(
            self.source, key, lambda: self._digest(data.source, data.field, "evaluation")
        )
        if data.source == self.recipe.data.calibration.source and data.source != "demo":
            raise self.source.error(
                "calibration and evaluation are the same text: that measures memory, not quality",
                key,
                "hold some text out, or evaluate on demo",
            )
        count = data.windows if windows is None else min(windows, data.windows)
        return data.model_dump() | {
            "source": text_name(data.source), "windows": count, "length": length, "digest": digest
        }  # fmt: skip

    def bench(self, item: Expanded, settings: BenchStep) -> PlannedStep:
        place: Key = (*item.key, "bench")
        measured = [
            p for name in settings.from_ for p in _members(name, self.ids, item, self.source)
        ]
        for parent in measured:
            if parent not in {MODEL, *self.written, *self.outside}:
                raise self.source.error(f"{parent!r} is no model", (*place, "from"))
        if not measured:
            measured = [MODEL, *self.written]
        against = settings.against
        if against not in (None, MODEL) and against not in self.written:
            raise self.source.error(f"{against!r} is not one step's model", (*place, "against"))
        check_gates(settings.gates, self.source, (*place, "gates"))
        parents = tuple(dict.fromkeys([*([against] if against else []), *measured]))
        effective = settings.model_dump(by_alias=True) | {
            "from": list(dict.fromkeys(measured)),
            "evaluation": self._evaluation(),
            "seed": self.recipe.seed,
        }
        footprint = bench_footprint(self.model, len(parents), effective["evaluation"])
        return PlannedStep(
            item.step.id, "bench", effective, parents, place, None, self._texts(), (), footprint
        )

    def gate(self, item: Expanded, gates: list[str], step: PlannedStep) -> PlannedStep:
        """The bench step that decides whether a quantized model may be built upon."""
        place: Key = (*item.key, item.step.verb, "gate")
        check_gates([g for g in gates if g != "default"], self.source, place)
        effective = BenchStep(from_=[step.id], speed=False).model_dump(by_alias=True) | {
            "gates": gates,
            "evaluation": self._evaluation(GATE_WINDOWS),
            "seed": self.recipe.seed,
        }
        footprint = replace(bench_footprint(self.model, 2, effective["evaluation"]), disk_bytes=0)
        parents = (MODEL, step.id)
        name = f"{step.id}.gate"
        return PlannedStep(
            name, "bench", effective, parents, place, step.id, self._texts(), (), footprint
        )


def _smallest(fate: TensorFate, spec: FormatSpec) -> int:
    """The fewest bytes that a linear's options take; 0 for other tensors."""
    rows, cols = (*fate.shape, 0, 0)[:2]
    return min((option.bytes((rows, cols), spec) for option in fate.options), default=0)


_METHOD_SETTINGS: frozenset[str] = frozenset().union(*(m.settings for m in METHODS.values()))


def check_gates(gates: list[str], source: Source, key: Key) -> None:
    """Refuse a gate that cannot be read or names an unknown metric."""
    for index, text in enumerate(gates):
        gate = _located(source, (*key, index), lambda text=text: parse(text))
        _located(source, (*key, index), lambda gate=gate: lookup(METRICS, "metric", gate.metric))


def text_name(source: str) -> str:
    """What manifests call a text: its file's name, not where it lies."""
    return source if source == "demo" else Path(source).resolve().name


def corpus_digest(source: str, field: str, split: corpora.Split) -> str:
    """What identifies the text behind `source`, without tokenizing it."""
    corpora.check(source, split=split, field=field)
    if source == "demo":
        return corpora.load(source, split=split).sha256
    path = Path(source)
    if path.is_dir():
        return artifact.digest_of(artifact.describe_files(path))
    return artifact.file_digest(path)
