"""Settings whose keys follow from other settings, before any verb has them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from llmopt import specs
from llmopt.errors import RecipeError, RequestError
from llmopt.recipe import from_data
from llmopt.recipe import models as recipe_models
from llmopt.recipe.fields import (
    Choice,
    Flag,
    Input,
    PresetId,
    Settings,
    Size,
    Variant,
    bits_of_grid,
    settings_in,
)
from llmopt.recipe.matrix import expand
from llmopt.recipe.schema import json_schema
from llmopt.specs import VERBS, VerbSpec


class Rounding(Settings):
    """No keys."""


class Feedback(Settings):
    damping: float = Field(0.01, description="share of the mean diagonal")


class Target(Settings):
    dtype: str = Field("auto", description="of weights")


class Plain(Target):
    """No more keys."""


class File(Target):
    preset: PresetId | None = Field(None, description="the mix")
    largest: Size | None = Field(None, description="of one file")
    method: Literal["rtn", "gptq"] = Field("rtn", description="how codes are chosen")
    solver: Annotated[
        Settings, Variant("method", lambda: {"rtn": Rounding, "gptq": Feedback}, "method {}")
    ] = Field(default_factory=Settings)


class Dream(Settings):
    from_: Annotated[str, Input("model")] = Field("model", alias="from", description="the model")
    teacher: Annotated[str | None, Input("teacher")] = Field(None, description="another")
    to: Annotated[str, Choice("target", lambda: ["plain", "file"])] = Field(description="a target")
    target: Annotated[
        Target, Variant("to", lambda: {"plain": Plain, "file": File}, "what is {}")
    ] = Field(default_factory=Target)
    zeros: Annotated[bool, Flag(off="--no-zeros")] = Field(True, description="zero points")


@pytest.fixture(autouse=True)
def dream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb in the table, whose settings are those above."""
    monkeypatch.setitem(
        VERBS,
        "dream",
        VerbSpec(id="dream", package="dream", version=1, yields="model", summary="Dream."),
    )
    real = specs.load

    def load(module: str) -> Any:
        return SimpleNamespace(SETTINGS=Dream) if module == "dream.settings" else real(module)

    monkeypatch.setattr(recipe_models, "load", load)


def dreams(settings: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    return from_data(
        {"version": 1, "model": "demo", "steps": [{"id": "a", "dream": settings, **more}]}
    )


def test_a_variants_keys_stand_beside_the_others() -> None:
    written = {"to": "file", "method": "gptq", "damping": 0.1, "preset": "Q4_K_M", "largest": "5MB"}
    settings = dreams(written)[0].steps[0].settings
    assert isinstance(settings.target, File)
    assert settings.target.solver == Feedback(damping=0.1)
    whole = written | {"largest": 5_000_000, "dtype": "auto", "zeros": True}
    assert settings.document() == whole
    assert settings.model_dump(by_alias=True) == whole | {"from": "model", "teacher": None}
    assert Dream.model_validate(settings.model_dump(by_alias=True)) == settings
    assert [(mark.role, key, name) for mark, key, name in settings.inputs()] == [
        ("model", "from", "model")
    ]


@pytest.mark.parametrize(
    ("settings", "key", "says", "hint"),
    [
        ({"to": "plain", "preset": 7}, "preset", "what is plain has no such", "plain reads: dtype"),
        ({"to": "file", "damping": 1}, "damping", "method rtn has no such", "method: gptq has it"),
        ({"to": "plain", "damping": 1}, "damping", "what is plain has no", "plain reads: dtype"),
        ({"to": "file", "presets": "F16"}, "presets", "unknown key", "did you mean 'preset'?"),
        ({"to": "file", "target": {}}, "target", "unknown key", ""),
        ({"to": "file", "solver": {"damping": 1}}, "solver", "unknown key", "known: "),
        ({"to": "file", "preset": "F17"}, "preset", "unknown preset 'F17'", "mean 'F16'?"),
        ({"to": "file", "method": "gptq", "damping": "x"}, "damping", "number, not 'x'", ""),
        ({"to": "fil"}, "to", "unknown target 'fil'", "did you mean 'file'?"),
        ({"to": "file", "largest": "5XB"}, "largest", "'5XB' is no size", "write it as"),
        ({"to": "plain", "no_zeros": True}, "no_zeros", "unknown key", "zeros: false"),
    ],
)  # fmt: skip
def test_mistakes_stand_where_the_key_does(
    settings: dict[str, Any], key: str, says: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        dreams(settings)
    assert refused.value.key == f"steps[0].dream.{key}"
    assert says in refused.value.message
    assert hint in (refused.value.hint or "")
    assert refused.value.others == ()


def test_a_choice_that_is_none_hides_no_other_mistake() -> None:
    with pytest.raises(RecipeError, match="unknown target 'fil'") as refused:
        dreams({"to": "fil", "method": "gpt", "damping": "x", "dtype": 7})
    assert [error.key for error in refused.value.all] == [
        f"steps[0].dream.{key}" for key in ("to", "dtype", "method", "damping")
    ]


def test_what_chooses_may_stand_in_the_matrix() -> None:
    recipe, source = dreams({"dtype": "f"}, matrix={"to": ["plain", "file"]})
    steps, _ = expand(recipe, source)
    assert [type(each.step.settings.target) for each in steps] == [Plain, File]  # type: ignore[attr-defined]
    recipe, source = dreams({"damping": 0.5}, matrix={"to": ["file"], "method": ["gptq", "rtn"]})
    with pytest.raises(RecipeError, match="method rtn has no such setting") as refused:
        expand(recipe, source)
    assert refused.value.key == "steps[0].dream.damping"


def test_the_schema_has_all_keys_and_says_what_goes_with_what() -> None:
    schema = json_schema()["$defs"]["Dream"]
    assert list(schema["properties"]) == list(settings_in(Dream))
    assert schema["additionalProperties"] is False
    plain, file = schema["allOf"]
    assert plain["if"]["properties"] == {"to": {"enum": ["plain"]}}
    assert plain["then"]["properties"] == dict.fromkeys(
        ["preset", "largest", "method", "damping"], False
    )
    assert file["then"]["properties"] == {}
    assert file["then"]["allOf"][0]["then"] == {"properties": {"damping": False}}


def test_which_choices_a_key_goes_with() -> None:
    found = {key: dict(each.when) for key, each in settings_in(Dream).items() if each.when}
    assert found == {
        "dtype": {"to": ("plain", "file")},
        "preset": {"to": ("file",)},
        "largest": {"to": ("file",)},
        "method": {"to": ("file",)},
        "damping": {"to": ("file",), "method": ("gptq",)},
    }


def test_bits_are_a_grid() -> None:
    assert bits_of_grid("4") == "int4"
    with pytest.raises(RequestError, match="5 is not 2, 3, 4 or 8"):
        bits_of_grid("5")


def test_settings_do_not_change() -> None:
    settings = Dream(to="plain")
    with pytest.raises(ValidationError):
        settings.zeros = False
