"""Flags are made from settings: each has one, says what it may be, and sets its key."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from llmopt.cli.commands import built
from llmopt.cli.flags import KeyFlag, verb_flags
from llmopt.errors import RequestError
from llmopt.recipe.fields import Flag, GridId, Input, Settings, Short, Variant, settings_in
from llmopt.recipe.models import settings_of
from llmopt.recipe.schema import json_schema
from llmopt.specs import VERBS, VerbSpec
from tests.cli.conftest import Llmopt

COMMANDS = [verb.id for verb in VERBS.values() if verb.command]


def helps(command: str) -> dict[str, str]:
    """Option as it is typed -> what --help says of it."""
    return {name: p.help for p in built(command).params for name in p.opts if name[0] == "-"}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_setting_has_a_flag(verb: str) -> None:
    flags = verb_flags(verb)
    keys = {f"{verb}.{key}" for key in settings_in(settings_of(verb))}
    assert {flag.key for flag in flags} | {f"{verb}.from"} == keys
    assert helps(verb).keys() >= {flag.name for flag in flags}


def allowed(schema: Any) -> list[str]:
    """What the schema of a property allows, for it or its items."""
    if isinstance(schema, list):
        return [each for part in schema for each in allowed(part)]
    if not isinstance(schema, dict):
        return []
    found = [str(each) for each in schema.get("enum", ()) if each is not None]
    return found + allowed([schema.get("anyOf"), schema.get("items")])


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_names_every_choice_of_the_schema(verb: str) -> None:
    said, found = helps(verb), 0
    for flag in verb_flags(verb):
        name = flag.key.rpartition(".")[2]
        properties = json_schema()["$defs"][settings_of(verb).__name__]["properties"]
        for choice in allowed(properties[name]) if flag.choices else ():
            assert choice in flag.choices
            assert choice in said[flag.name] or choice.startswith("gguf:"), choice
            found += 1
    assert found


def _layers(text: str) -> object:
    first, dash, last = text.partition("-")
    if not dash:
        raise RequestError(f"{text} is not FIRST-LAST", hint="--cut 3-5")
    return {"first": int(first), "last": int(last)}


def _halved(text: str) -> object:
    return int(text) // 2


class Plain(Settings):
    """Of all ways."""

    seen: int = Field(3, description="samples")


class Influence(Plain):
    """Of one."""

    damping: float = Field(0.1, description="more of it")


def _ways() -> dict[str, type[Settings]]:
    return {"block-influence": Influence, "last": Plain}


class SlimSettings(Settings):
    """Fewer layers."""

    from_: Annotated[str, Input("model")] = Field("model", alias="from", description="the model")
    teacher: Annotated[str | None, Input("teacher", outside=True)] = Field(
        None, description="whose outputs are learned"
    )
    layers: Annotated[int, Short("--pairs", _halved, metavar="PAIRS")] = Field(
        2, ge=1, description="how many go"
    )
    how: Literal["block-influence", "last"] = Field("last", description="which go")
    way: Annotated[Settings, Variant("how", _ways)] = Field(
        default_factory=Settings, description="of that way"
    )
    grids: Annotated[list[GridId], Flag("--grid")] = Field(default_factory=list, description="x")
    cuts: Annotated[list[dict[str, int]], Flag("--cut", metavar="FIRST-LAST", parse=_layers)] = (
        Field(default_factory=list, description="ranges")
    )
    ratio: float | None = Field(None, gt=0, description="share")
    heal: bool = Field(True, description="train afterwards")
    strict: bool = Field(False, description="no exceptions")
    soft: Annotated[bool | None, Flag(off="--hard")] = Field(None, description="softly")


@pytest.fixture
def slim(monkeypatch: pytest.MonkeyPatch) -> str:
    """A verb of another package: nothing in llmopt/cli knows it."""
    settings = types.ModuleType("elsewhere.slim.settings")
    settings.__dict__["SETTINGS"] = SlimSettings
    monkeypatch.setitem(sys.modules, "elsewhere.slim.settings", settings)
    spec = VerbSpec(
        id="slim", package="elsewhere.slim", version=1, yields="model", summary="Drop layers."
    )
    monkeypatch.setitem(VERBS, "slim", spec)
    return "slim"


def printed(llmopt: Llmopt, *arguments: object) -> Any:
    done = llmopt("slim", "demo", "-o", "x", *arguments, "--print-recipe")
    assert done.code == 0, done.err
    return yaml.safe_load(done.out)


def test_a_verb_of_another_package_has_a_command(slim: str, llmopt: Llmopt) -> None:
    assert "slim      Drop layers." in llmopt("--help").out
    said = " ".join(llmopt("slim", "--help").out.split())
    for words in (
        "--how NAME Which go. [one of: block-influence, last; default: last]",
        "--layers NUMBER How many go. [default: 2]",
        "--pairs PAIRS", "--heal / --no-heal", "--soft / --hard", "--cut FIRST-LAST",
        "--seen NUMBER Samples. [default: 3]",
        "--damping NUMBER More of it. [only with --how block-influence; default: 0.1]",
        "--teacher TEXT Whose outputs are learned.", "--calibration TEXT", "--seed NUMBER",
    ):  # fmt: skip
        assert words in said, words


def test_every_form_of_a_flag_sets_its_key(slim: str, llmopt: Llmopt, tmp_path: Path) -> None:
    (tmp_path / "demo2").mkdir()
    recipe = printed(
        llmopt, "--layers", 3, "--grid", "int4", "--grid", "int8", "--cut", "1-2", "--ratio", ".5",
        "--no-heal", "--strict", "--hard", "--teacher", "demo2", "--how", "last", "--seed", 7,
        "--calibration", "demo", "--field", "text", "--windows", 9, "--evaluation", "demo",
    )  # fmt: skip
    assert recipe["seed"] == 7
    assert recipe["data"] == {
        "calibration": {"source": "demo", "field": "text"},
        "evaluation": {"source": "demo", "windows": 9, "field": "text"},
    }
    assert recipe["steps"] == [
        {
            "id": "x",
            "slim": {
                "teacher": "./demo2", "layers": 3, "how": "last", "grids": ["int4", "int8"],
                "cuts": [{"first": 1, "last": 2}], "ratio": 0.5, "heal": False, "strict": True,
                "soft": False,
            },
        }
    ]  # fmt: skip
    assert printed(llmopt)["steps"] == [{"id": "x", "slim": {}}]
    influence = printed(llmopt, "--how", "block-influence", "--damping", "0.5")
    assert influence["steps"][0]["slim"] == {"how": "block-influence", "damping": 0.5}
    short = printed(llmopt, "--pairs", 8, "--grid", "none", "--heal", "--soft")
    assert short["steps"][0]["slim"] == {"layers": 4, "grids": [], "heal": True, "soft": True}


def test_mistakes_name_the_flag(slim: str, llmopt: Llmopt) -> None:
    done = llmopt(
        "slim", "demo", "-o", "x", "--layers", "many", "--ratio", "x", "--grid", "int4", "--grid",
        "int5", "--cut", "3", "--how", "lst", "--seed", "-1", "--windows", "1.5", "--print-recipe",
        "--json",
    )  # fmt: skip
    assert done.code == 2
    told = {e["message"].partition(": ")[0]: e for e in done.document["errors"]}
    flags = ["--cut", "--seed", "--windows", "--layers", "--how", "--grid", "--ratio"]
    assert sorted(told) == sorted(flags), done.err
    assert told["--layers"]["message"] == ("--layers: input should be a valid integer, not 'many'")
    assert told["--cut"]["hint"] == "--cut 3-5"
    assert told["--how"]["hint"] == "did you mean 'last'?"
    twice = llmopt("slim", "demo", "-o", "x", "--layers", 4, "--pairs", 8, "--print-recipe")
    assert "--pairs: says the same thing as --layers" in twice.err


class StudentSettings(Settings):
    """An input that no default names."""

    student: Annotated[str, Input("model")] = Field(description="what learns")


def test_the_model_is_what_the_input_of_that_role_names(
    slim: str, llmopt: Llmopt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["elsewhere.slim.settings"], "SETTINGS", StudentSettings)
    monkeypatch.setitem(VERBS, slim, replace(VERBS[slim], version=2))  # classes go by the table
    recipe = printed(llmopt)
    assert (recipe["model"], recipe["steps"][0][slim]) == ("demo", {"student": "model"})


@pytest.mark.parametrize(
    ("line", "start", "hint"),
    [
        ("generate demo -p x -n abc", "--max-new-tokens: input should", "llmopt generate --help"),
        ("generate demo -p x --top-p 3", "--top-p: input should be", "llmopt generate --help"),
        ("quantize demo -o x --threads 0", "--threads: input should be", "llmopt quantize --help"),
        ("generate demo", "missing option '-p' / '--prompt'", "llmopt generate --help"),
        ("convert demo -o x", "missing option '--to'", "llmopt convert --help"),
        ("quantize demo -o x --bit-width 4", "no such option: --bit", "llmopt quantize --help"),
        ("quantise", "no such command 'quantise'", "llmopt --help"),
        ("recipes shwo", "no such command 'shwo'", "llmopt recipes --help"),
    ],
)  # fmt: skip
def test_mistakes_of_usage_are_told_as_others_are(
    llmopt: Llmopt, line: str, start: str, hint: str
) -> None:
    done = llmopt(*line.split(), "--json")
    assert (done.code, done.err.count("error: ")) == (2, 1)
    (told,) = done.document["errors"]
    assert told["message"].startswith(start), told
    assert told["hint"] == hint


def test_two_flags_of_one_name_are_found_when_the_command_is_built(
    slim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clashing(Settings):
        device: str = Field("cpu", description="where")

    monkeypatch.setattr(sys.modules["elsewhere.slim.settings"], "SETTINGS", Clashing)
    with pytest.raises(ValueError, match="slim: two flags of one name"):
        built("slim")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmopt qu", ["quantize"]),
        ("llmopt quantize demo --met", ["--method"]),
        ("llmopt quantize demo --method g", ["gptq"]),
        ("llmopt quantize demo --grid int", ["int2", "int3", "int4", "int8"]),
        ("llmopt quantize demo --format aw", ["awq"]),
        ("llmopt convert demo --to gguf:Q4_K", ["gguf:Q4_K_S", "gguf:Q4_K_M"]),
        ("llmopt convert demo --preset Q6", ["Q6_K"]),
        ("llmopt bench demo --runtime l", ["llama.cpp"]),
        ("llmopt run dem", ["demo"]),
        ("llmopt recipes show dem", ["demo"]),
        ("llmopt generate demo --runtime t", ["torch"]),
        ("llmopt run demo --set data.calibration.so", ["data.calibration.source="]),
        ("llmopt plan demo --set steps.w4.quantize.group", ["steps.w4.quantize.group_size="]),
        ("llmopt plan nowhere --set s", []),
    ],
)
def test_shells_complete_values(
    llmopt: Llmopt, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]
) -> None:
    monkeypatch.setenv("_LLMOPT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert llmopt().out.split() == expected


def test_flags_are_data_that_can_be_compared() -> None:
    first, second = verb_flags("quantize"), verb_flags("quantize")
    assert [flag.name for flag in first] == [flag.name for flag in second]
    assert len({flag.name for flag in first}) == len(first)
    assert all(isinstance(flag, KeyFlag) and flag.help for flag in first)
