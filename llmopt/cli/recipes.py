"""llmopt recipes"""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.cli.commands import typer_app

app = typer_app(
    help="Shipped recipes, effective settings, and the schema for editors.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command("list")
def list_(json: o.Json = False) -> None:
    """The recipes that come with llmopt."""
    from llmopt.cli.output import Output
    from llmopt.recipe import shipped_recipes

    output = Output(json)
    recipes = {name: _headline(path.read_text("utf-8")) for name, path in shipped_recipes().items()}
    for name, headline in recipes.items():
        output.text(f"{name:24} {headline}")
    output.result(recipes)


@app.command()
def show(
    recipe: o.RecipeName,
    effective: Annotated[
        bool, typer.Option("--effective", help="With every default and override filled in.")
    ] = False,
    set_: o.Sets = None,
    json: o.Json = False,
) -> None:
    """Print a recipe, as written or with all its settings."""
    import yaml

    from llmopt.cli.output import Output
    from llmopt.recipe import load
    from llmopt.recipe.loader import locate

    output = Output(json)
    loaded, _ = load(recipe, set_ or ())
    if not effective and not set_ and not json:
        output.text(locate(recipe).read_text("utf-8"))
        return
    data = loaded.model_dump(by_alias=True, exclude_none=True)
    output.text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    output.result(data)


@app.command()
def schema(json: o.Json = False) -> None:
    """Print the JSON schema of recipes, for editors."""
    from llmopt.cli.output import Output
    from llmopt.recipe.schema import json_schema

    Output(as_json=True).result(json_schema())


def _headline(text: str) -> str:
    first = text.splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
