"""plan(recipe): order, check, desugar, predict, from specs and file headers alone. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmopt import artifact
from llmopt.errors import Mistakes, RecipeError, RequestError
from llmopt.formats.quantization import read_contents
from llmopt.planner.desugar import Desugar
from llmopt.planner.graph import named_parents, ordered, outside
from llmopt.planner.states import State, states
from llmopt.planner.steps import MODEL, Plan, PlannedStep
from llmopt.pretrained import has_tokenizer
from llmopt.recipe import Recipe, Source
from llmopt.recipe.located import located
from llmopt.recipe.matrix import Expanded, expand
from llmopt.report import card_metadata
from llmopt.sources import ModelSource, resolve
from llmopt.specs.kinds import kind_of

__all__ = ["MODEL", "Plan", "PlannedStep", "State", "plan", "states"]


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
    ids |= {typed: [name] for typed, name in externals.items()}
    in_order = ordered(expanded, ids, source, set(externals.values()))
    model = located(source, ("model",), lambda: resolve(recipe.model, recipe.revision, fetch=fetch))
    if allow_pickle:
        model = located(source, ("model",), lambda: _unpickled(model))
    contents = located(source, ("model",), lambda: read_contents(model.folder))
    if any(item.step.verb != "bench" for item in expanded):
        located(source, ("model",), lambda: card_metadata.declared(model.folder))
    folders = {name: _external(Path(typed)) for typed, name in externals.items()}
    others = {name: read_contents(folder) for name, folder in folders.items()}
    desugar = Desugar(recipe, source, ids, contents, others, model.name)
    steps = _desugared(in_order, ids, desugar)
    _check_ids(steps, source)
    _check_tokenizers(steps, model.folder, folders, source)
    single = source.file == "<command line>" and len(expanded) == 1
    if single:
        artifact.check_name(out)
    outputs = {s.id: _place(s, out, single=single) for s in steps if s.gates_of is None}
    inputs = [model.folder, *folders.values(), *_text_folders(recipe)]
    for name, path in outputs.items():
        artifact.check_apart(path, inputs)
        artifact.check_destination(path)
        _check_parts(next(s for s in steps if s.id == name), path, source)
    return Plan(recipe, model, tuple(steps), outputs, folders, single)


def _text_folders(recipe: Recipe) -> list[Path]:
    """Datasets that are folders: a file in one of them would change its digest."""
    sources = (recipe.data.calibration.source, recipe.data.evaluation.source)
    return [path for source in sources if source and (path := Path(source)).is_dir()]


def _desugared(
    in_order: list[Expanded], ids: dict[str, list[str]], desugar: Desugar
) -> list[PlannedStep]:
    """All planned steps. What builds on a step with a mistake is not looked at any more."""
    steps: list[PlannedStep] = []
    mistakes, failed = Mistakes(), set[str]()
    for item in in_order:
        named = named_parents(item)
        if failed & {member for name in named for member in ids.get(name, [name])}:
            failed.add(item.step.id)
            continue
        try:
            steps += desugar.steps(item)
        except RecipeError as error:
            mistakes.add(error.all)
            failed.add(item.step.id)
    mistakes.raise_any()
    return steps


def _check_ids(steps: list[PlannedStep], source: Source) -> None:
    """RecipeError where a step is called what the planner calls one that it adds."""
    names = [step.id for step in steps]
    for step in steps:
        if names.count(step.id) > 1 and step.gates_of is None and step.verb != "allocate":
            message = f"{step.id!r} is what the planner calls a step of its own"
            raise source.error(message, (*step.key[:2], "id"), "choose another id")


def _check_tokenizers(
    steps: list[PlannedStep], model: Path, outside: dict[str, Path], source: Source
) -> None:
    """RecipeError where a step has text to read, and its model no tokenizer to read it with."""
    for step in steps:
        first = step.settings.get("against") or step.parents[0]
        folder = outside.get(first, model)
        if {"calibration", "evaluation"} & step.texts.keys() and not has_tokenizer(folder):
            hint = "put the model's tokenizer.json into the folder"
            judges = step.gates_of is not None
            raise source.error(
                f"{'the quality gate' if judges else step.verb} reads text, and there is no "
                f"tokenizer in {folder}",
                step.key,
                f"{hint}, or take no gate (--gate none)" if judges else hint,
            )


def _external(path: Path) -> Path:
    return path if path.is_dir() else resolve(str(path)).folder


def _place(step: PlannedStep, out: Path, *, single: bool) -> Path:
    """A step's folder. What a lone step is prepared by stands hidden beside it."""
    if not single:
        return out / step.id
    files = kind_of(step.settings.get("to")).files
    if artifact.folder_of(out) != out and out.suffix not in files:
        raise RequestError(f"{out} is a file name, and the result is a folder")
    out = artifact.folder_of(out)
    return out.with_name(f".{out.name}.allocation") if step.verb == "allocate" else out


def _check_parts(step: PlannedStep, path: Path, source: Source) -> None:
    """RecipeError where a conversion to one file would write several."""
    size, file = step.settings.get("split_size"), artifact.file_of(path)
    most = step.settings.get("target_size") or sum(fate.bytes for fate in step.fates)
    if size and file and most > size:
        message = f"several files of {size:,} bytes cannot be {file.name}"
        hint = "-o FOLDER, or a larger split size"
        raise source.error(message, (*step.key, "split_size"), hint)


def _unpickled(model: ModelSource) -> ModelSource:
    """The model with weights that can be read; torch is loaded for pickles alone."""
    from llmopt.formats.pickles import unpickled

    return replace(model, folder=unpickled(model.folder, artifact.cache_folder()))
