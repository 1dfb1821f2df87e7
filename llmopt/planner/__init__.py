"""plan(recipe): order, check, desugar, predict, from specs and file headers alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llmopt import artifact
from llmopt.caches import cache_folder
from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.formats.quantization import read_contents
from llmopt.planner.context import Context, Shared, planned
from llmopt.planner.graph import Names, named, ordered, outside
from llmopt.planner.made import Plan, yields_model
from llmopt.planner.states import State, states
from llmopt.planner.texts import Texts
from llmopt.pretrained import has_tokenizer
from llmopt.recipe import Recipe, Source
from llmopt.recipe.matrix import Expanded, expand
from llmopt.recipe.source import COMMAND_LINE
from llmopt.report import card_metadata
from llmopt.sources import ModelSource, resolve
from llmopt.specs import VERBS
from llmopt.specs.kinds import kind_of
from llmopt.step import MODEL, PlannedStep

__all__ = ["MODEL", "Plan", "PlannedStep", "State", "plan", "states", "yields_model"]


def plan(
    recipe: Recipe, source: Source, out: Path, *, fetch: bool = True, allow_pickle: bool = False
) -> Plan:
    """Check everything that can be checked before work, and say what would be done.

    `out` is the folder of a recipe's results, or, for a recipe of one written step that the
    command line made, of that step's. With `allow_pickle`, weights that are only pickled are first
    copied as safetensors into the cache. Raises RecipeError naming line, key and layer.
    """
    expanded, ids = expand(recipe, source)
    externals = outside(expanded, ids)
    names = Names(
        {**ids, **{typed: [name] for typed, name in externals.items()}},
        frozenset(externals.values()),
    )
    in_order = ordered(expanded, names, source)
    model = _model(recipe, source, in_order, fetch=fetch, allow_pickle=allow_pickle)
    folders = {name: _external(Path(typed)) for typed, name in externals.items()}
    single = source.file == COMMAND_LINE and len(expanded) == 1
    if single:
        artifact.check_name(out)
    shared = _shared(recipe, source, names, model, folders, out if single else None)
    steps = _planned(in_order, shared)
    _check_ids(steps, source)
    _check_tokenizers(steps, model.folder, folders, source)
    outputs = {s.id: _place(s, out, single=single) for s in steps if s.judges is None}
    inputs = [model.folder, *folders.values(), *_text_folders(recipe)]
    for path in outputs.values():
        artifact.check_apart(path, inputs)
        artifact.check_destination(path)
    return Plan(recipe, model, tuple(steps), outputs, folders, single)


def _model(
    recipe: Recipe, source: Source, steps: list[Expanded], *, fetch: bool, allow_pickle: bool
) -> ModelSource:
    """The model that the recipe begins with; its card is looked at where others are made of it."""
    with source.at(("model",)):
        model = resolve(recipe.model, recipe.revision, fetch=fetch)
        if allow_pickle:  # torch is loaded for pickles alone
            from llmopt.formats.pickles import unpickled

            model = replace(model, folder=unpickled(model.folder, cache_folder()))
        if any(VERBS[item.step.verb].yields == "model" for item in steps):
            card_metadata.declared(model.folder)
    return model


def _shared(
    recipe: Recipe, source: Source, names: Names, model: ModelSource,
    folders: Mapping[str, Path], out: Path | None,
) -> Shared:  # fmt: skip
    with source.at(("model",)):
        contents = read_contents(model.folder)
    file = artifact.file_of(artifact.folder_of(out)) if out else None
    return Shared(
        texts=Texts(recipe, contents.config),
        names=names,
        known={MODEL: contents} | {name: read_contents(path) for name, path in folders.items()},
        seed=recipe.seed,
        max_memory=recipe.max_memory,
        sequences=recipe.data.calibration.sequences,
        model_name=model.name,
        file_name=file.name if file else None,
    )


def _text_folders(recipe: Recipe) -> list[Path]:
    """Datasets that are folders: a file in one of them would change its digest."""
    sources = (recipe.data.calibration.source, recipe.data.evaluation.source)
    return [path for source in sources if source and (path := Path(source)).is_dir()]


def _planned(in_order: list[Expanded], shared: Shared) -> list[PlannedStep]:
    """All planned steps. What builds on a step with a mistake is not looked at any more."""
    steps: list[PlannedStep] = []
    mistakes, failed = Mistakes(), set[str]()
    for item in in_order:
        step, ids = item.step, shared.names.ids
        if failed & {member for _, name in named(item) for member in ids.get(name, [name])}:
            failed.add(step.id)
            continue
        try:
            found = planned(step.verb, _context(item, shared))
        except RecipeError as error:
            mistakes.add(error.all)
            failed.add(step.id)
            continue
        steps += found.steps
        if found.contents is not None:
            shared.known[step.id] = found.contents
    mistakes.raise_any()
    return steps


def _context(item: Expanded, shared: Shared) -> Context:
    step, key = item.step, (*item.key, item.step.verb)
    return Context(**vars(shared), id=step.id, key=key, source=item.source, settings=step.settings)


def _check_ids(steps: list[PlannedStep], source: Source) -> None:
    """RecipeError where a step is called what the planner calls one that it adds."""
    names = [step.id for step in steps]
    for step in steps:
        if names.count(step.id) > 1 and step.asked_by is None:
            message = f"{step.id!r} is what the planner calls a step of its own"
            raise source.error(message, (*step.key[:2], "id"), "choose another id")


def _check_tokenizers(
    steps: list[PlannedStep], model: Path, outside: dict[str, Path], source: Source
) -> None:
    """RecipeError where a step has text to read, and its model no tokenizer to read it with."""
    for step in steps:
        folder = outside.get(step.parents[0], model)
        if (step.calibration or step.evaluation) and not has_tokenizer(folder):
            hint = "put the model's tokenizer.json into the folder"
            judges = step.judges is not None
            raise source.error(
                f"{'the quality gate' if judges else step.verb} reads text, and there is no "
                f"tokenizer in {folder}",
                step.key,
                f"{hint}, or take no gate (--gate none)" if judges else hint,
            )


def _external(path: Path) -> Path:
    return path if path.is_dir() else resolve(str(path)).folder


def _place(step: PlannedStep, out: Path, *, single: bool) -> Path:
    """A step's folder. What a lone step asked for before it stands hidden beside it."""
    if not single:
        return out / step.id
    files = kind_of(step.writes).files
    if artifact.folder_of(out) != out and out.suffix not in files and step.asked_by is None:
        raise RequestError(f"{out} is a file name, and the result is a folder")
    out = artifact.folder_of(out)
    if step.asked_by is None:
        return out
    return out.with_name(f".{out.name}.{step.id.removeprefix(f'{step.asked_by}.')}")
