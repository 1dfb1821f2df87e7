"""The documentation is true: commands run, recipes plan, generated pages are up to date."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from llmopt import planner
from llmopt.cli.commands import application
from llmopt.recipe import load, shipped_recipes
from tests.cli.conftest import Llmopt, llmopt  # noqa: F401  a fixture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Every `$ llmopt ...` line of a page's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line[2:])[1:] for line in lines if line.startswith("$ llmopt ")]


DOCUMENTED = [(page.name, c) for page in PAGES for c in commands(page)]


def parsed(arguments: list[str]) -> Any:
    """Parse a command line without running it; Typer raises on a mistake."""
    group: Any = typer.main.get_command(application())
    context = group.make_context("llmopt", list(arguments))
    rest = [*context._protected_args, *context.args]
    while True:
        name, command, rest = group.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
        if not hasattr(context.command, "resolve_command"):
            return context
        group, rest = context.command, [*context._protected_args, *context.args]


@pytest.mark.parametrize(
    "arguments", [c for _, c in DOCUMENTED], ids=[f"{p}:{' '.join(c)[:50]}" for p, c in DOCUMENTED]
)
def test_documented_command_is_understood(arguments: list[str]) -> None:
    assert parsed(arguments).params


def test_a_mistake_in_the_docs_would_be_found() -> None:
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parsed(["quantize", "demo", "-o", "x", "--bit-width", "4"])


@pytest.mark.slow(part="docs")
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_documented_commands_run(page: Path, llmopt: Llmopt) -> None:  # noqa: F811
    for arguments in commands(page):
        done = llmopt(*arguments)
        assert done.code == 0, f"llmopt {shlex.join(arguments)}\n{done.err}"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_plans(name: str, tmp_path: Path) -> None:
    recipe, source = load(name)
    assert planner.plan(recipe, source, tmp_path / "out", fetch=False).steps


def test_recipes_in_the_docs_plan(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            if "version: 1" in block:
                path = tmp_path / "recipe.yaml"
                path.write_text(block)
                assert planner.plan(*load(path), tmp_path / "out", fetch=False).steps
                found += 1
    assert found


def test_generated_pages_are_up_to_date() -> None:
    script = ROOT / "scripts" / "generate_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_schema_accepts_shipped_recipes_and_refuses_typos() -> None:
    import jsonschema

    from llmopt.recipe.schema import json_schema

    checker = jsonschema.Draft202012Validator(json_schema())
    for path in shipped_recipes().values():
        data = yaml.safe_load(path.read_text("utf-8"))
        checker.validate(data)
        data["modle"] = data.pop("model")
        assert not checker.is_valid(data)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
