"""The commands of verbs, made from their settings."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli import flags as f
from llmopt.cli import options as o
from llmopt.cli.completion import offered
from llmopt.cli.one_step import Typed, named, recipe_of
from llmopt.errors import Mistakes, RecipeError
from llmopt.specs import VerbSpec

if TYPE_CHECKING:
    from llmopt.cli.output import Output
    from llmopt.recipe import Recipe, Source
    from llmopt.recipe.source import CommandOption
    from llmopt.step import RunOptions

#: parameters of every verb's command that say how it works, and set no key of a recipe
_RUN: dict[str, tuple[object, object]] = {
    "device": (o.Device, "auto"),
    "threads": (o.Threads, None),
    "allow_pickle": (o.AllowPickle, False),
    "overwrite": (o.Overwrite, False),
    "print_recipe": (o.PrintRecipe, False),
    "json": (o.Json, False),
    "quiet": (o.Quiet, False),
    "verbose": (o.Verbose, False),
}
#: the key of one flag, and that of another which is of no use then -> why
_INSTEAD = {("convert.imatrix", "data.calibration.source"): "takes the place of calibration text"}
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Call:
    """How a verb's command was called: what was typed for each flag, and for the parameters."""

    verb: VerbSpec
    flags: Sequence[f.KeyFlag]
    typed: Typed
    given: Mapping[str, Any]

    @property
    def options(self) -> RunOptions:
        """What may differ from run to run."""
        from llmopt.step import RunOptions

        return RunOptions(*(self.given[name] for name in ("device", "threads", "overwrite")))

    def output(self) -> Output:
        """Where its words go."""
        from llmopt.cli.output import Output

        return Output(self.given["json"], self.given["quiet"])


def command(verb: VerbSpec) -> Callable[..., None]:
    """`llmopt VERB MODEL -o OUT [flags]`; further inputs by role are flags, too."""
    flags = [*f.verb_flags(verb.id), *f.recipe_flags((*f.CALIBRATION, *f.COMMON, "revision"))]
    return function(verb, flags, {"model": (o.Model, REQUIRED), "out": (o.Out, REQUIRED)}, _run)


def function(
    verb: VerbSpec,
    flags: Sequence[f.KeyFlag],
    own: Mapping[str, tuple[object, object]],
    run: Callable[[Call], None],
) -> Callable[..., None]:
    """What Typer makes the command of: parameters for `flags`, its `own`, and those of all verbs.

    `own` maps names to annotations and defaults; `run` does the work.
    """
    by_name = {_name(flag): flag for flag in flags}
    plain = {**own, **_RUN}
    if len(by_name) < len(flags) or by_name.keys() & plain.keys():
        raise ValueError(f"{verb.id}: two flags of one name")

    def called(**given: Any) -> None:
        typed = {flag: given[name] for name, flag in by_name.items() if given[name] is not None}
        run(Call(verb, flags, typed, {name: given[name] for name in plain}))

    flagged = {name: (_annotation(flag), flag.default) for name, flag in by_name.items()}
    kind, declared = inspect.Parameter.KEYWORD_ONLY, {**own, **flagged, **_RUN}
    called.__dict__["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(name, kind, annotation=annotation, default=default)
            for name, (annotation, default) in declared.items()
        ]
    )
    return called


def _name(flag: f.KeyFlag) -> str:
    name = flag.name.lstrip("-").replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _annotation(flag: f.KeyFlag) -> object:
    kinds: dict[str, object] = {"switch": bool | None, "value": str | None}
    option = typer.Option(
        f"{flag.name}/{flag.off}" if flag.off else flag.name,
        metavar=None if flag.kind == "switch" else flag.metavar,
        help=flag.help,
        autocompletion=offered(lambda: flag.choices),
    )
    return Annotated[kinds.get(flag.kind, list[str] | None), option]


def _run(call: Call) -> None:
    """Run the one step of the recipe that a command stands for, and print what came of it."""
    from llmopt.cli.steps import documents, execute, raise_if_failed, summary_line, written

    mistakes, out = Mistakes(), Path(call.given["out"])
    key = f.input_key(call.verb.id, "model")
    inputs = {key: "model"} if key else {}
    data = recipe_of(call.verb.id, call.given["model"], call.typed, out, mistakes, inputs)
    _check(call.typed, mistakes)
    recipe, source = checked(data, named(call.flags, call.typed), mistakes)
    output = call.output()
    if call.given["print_recipe"]:
        print_as_recipe(data, output)
        return
    output.note(f"{recipe.model}: checking the request ...")
    from llmopt import planner  # what takes long to import comes after the first line

    plan = planner.plan(recipe, source, out, allow_pickle=call.given["allow_pickle"])
    ran = execute(plan, call.options, output)
    for result in written(ran, "model"):
        output.text(summary_line(result))
    output.result(documents(ran))
    raise_if_failed(ran)


def _check(typed: Typed, mistakes: Mistakes) -> None:
    """What is typed twice in other words."""
    by_key = {flag.key: flag for flag in typed}
    for (one, other), why in _INSTEAD.items():
        if one in by_key and other in by_key:
            hint = f"leave out {by_key[other].name}"
            mistakes.add([RecipeError(why, where=by_key[one].name, hint=hint)])


def checked(
    data: dict[str, object], names: Mapping[str, CommandOption], mistakes: Mistakes
) -> tuple[Recipe, Source]:
    """The recipe of a command, or an error with these mistakes and those in the recipe."""
    from llmopt.recipe import from_data

    with mistakes.gathered():
        recipe, source = from_data(data, names)
    mistakes.raise_any()
    return recipe, source


def print_as_recipe(data: dict[str, object], output: Output) -> None:
    """The recipe that does what a command line asks for."""
    import yaml

    output.text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    output.result(data)
