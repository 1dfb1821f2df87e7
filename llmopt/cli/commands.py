"""The commands by name; each is imported and its options are made when it is called."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from llmopt import __version__
from llmopt.specs import VERBS, load

#: commands that are no verbs, each in the module of its name here, and what they do
OTHERS = {
    "run": "Run a recipe; reuse and resume.",
    "plan": "Say what a recipe would do.",
    "inspect": "Show what a model or artifact is.",
    "verify": "Check an artifact byte by byte.",
    "push": "Upload a model to the hub.",
    "trust": "Let a model's native code run.",
    "generate": "Continue a text.",
    "report": "Write a report page from results.",
    "recipes": "Shipped recipes, settings, JSON schema.",
    "doctor": "Show machine, libraries and backends.",
}


typer_app = partial(
    typer.Typer,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes half of the time in which --help must answer
)


def summaries() -> dict[str, str]:
    """Every command's name and what it does, in the order of --help."""
    verbs = {verb.id: verb.summary for verb in VERBS.values() if verb.command}
    return verbs | OTHERS


class Later(TyperCommand):
    """Stands for a command in lists; the command itself is built once its arguments are read."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        return built(str(self.name)).make_context(info_name, args, parent=parent, **extra)


def application() -> typer.Typer:
    """The whole command line."""
    app = typer_app(
        name="llmopt",
        help="Make language models smaller, faster and cheaper, with proof that they are as good.",
        no_args_is_help=True,
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_main)
    for name, summary in summaries().items():
        app.command(name, cls=Later, short_help=summary)(_main_of_later)
    return app


def built(name: str) -> Any:
    """The command of a name with its options, as Click's object."""
    app = typer_app(add_completion=False)
    if verb := VERBS.get(name):
        module = load("llmopt.cli.bench" if verb.yields == "results" else "llmopt.cli.verbs")
        app.command(name, help=verb.summary)(module.command(verb))
    else:
        module = load(f"llmopt.cli.{name}")
        if hasattr(module, "app"):
            return typer.main.get_command(module.app)
        app.command(name)(getattr(module, name))
    return typer.main.get_command(app)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"llmopt {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _main_of_later() -> None:
    raise AssertionError("make_context gives the command itself")
