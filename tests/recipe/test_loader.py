"""Environment variables, --set, defaults, and YAML's corners."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmopt.errors import RecipeError, RequestError
from llmopt.recipe import load, shipped_recipes

TEXT = """\
version: 1
model: ${MODEL:-demo}
seed: ${SEED}
steps:
  - id: a
    quantize: {grid: int4}
  - {id: b, bench: {from: a}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEED", "7")
    path = tmp_path / "r.yaml"
    path.write_text(TEXT)
    return path


def test_variables_keep_their_types_and_have_defaults(recipe: Path) -> None:
    loaded, _ = load(recipe)
    assert (loaded.model, loaded.seed) == ("demo", 7)


def test_a_variable_of_the_wrong_type_is_refused_where_it_stands(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED", "many")
    with pytest.raises(RecipeError, match="seed: input should be a valid integer") as refused:
        load(recipe)
    assert refused.value.line == 3


def test_set_reaches_steps_by_id_and_by_index(recipe: Path) -> None:
    loaded, _ = load(
        recipe,
        ["steps.a.quantize.grid=int3", "steps.1.bench.speed=false", "data.evaluation.windows=9"],
    )
    assert loaded.steps[0].settings is not None
    assert loaded.steps[0].settings.grid == "int3"
    assert loaded.steps[1].settings is not None
    assert loaded.steps[1].settings.speed is False
    assert loaded.data.evaluation.windows == 9


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps.c.quantize.grid=int3", "there is no 'c'"),
        ("nonsense", "key=value"),
        ("steps.a.quantize.grid=int9", "unknown grid"),
        ("steps.a.quantize.grd=int4", "unknown key"),
        ("seed=[", "not valid YAML"),
        ("model.name=x", "to set"),
    ],
)
def test_wrong_overrides_are_refused(recipe: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load(recipe, [override])


def test_one_name_is_a_list_of_one(recipe: Path) -> None:
    step = load(recipe)[0].steps[1].settings
    assert step is not None
    assert step.from_ == ["a"]


def test_an_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    assert "demo" in shipped_recipes()
    with pytest.raises(RequestError) as refused:
        load("dem")
    assert "demo" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("- a\n- b\n", "a mapping"),
        ("just words", "a mapping"),
        ("a: &x [*x]\n", "contains itself"),
        ("? [1, 2]\n: 3\n", "plain words"),
        ("a: b: c\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "no values of type"),
    ],
)
def test_yaml_that_is_no_recipe(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        load(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("old", "new", "says", "hint"),
    [
        ("version: 1", 'version: "1"', "wants the number 1, not text", "take out the quotes"),
        ("version: 1", "version: true", "should be 1, not True", None),
        ("version: 1", "version: 1.0", "should be 1, not 1.0", None),
        ("grid: int4", "bits: 8", "unknown key", "grid: int8 (bits is short for it"),
        (
            "grid: int4",
            "bits: 5",
            "unknown key",
            "grid (bits is short for it on the command line alone, and 5 is not 2",
        ),
        ("grid: int4", "asymmetric: true", "unknown key", "symmetric: false"),
        (
            "grid: int4",
            'skip: "*.up_proj"',
            "unknown key",
            'overrides: [{match: "*.up_proj", skip: true}]',
        ),
        ("grid: int4", "calibration: demo", "unknown key", "data.calibration.source"),
        ("grid: int4", "group_size: '64'", "valid integer, not '64'", "write it without quotes"),
        ("grid: int4", "overrides: [7]", "should be a mapping of keys to values, not 7", None),
        ("grid: int4", "overrides: 7", "should be a list, not 7", None),
        ("grid: int4", "format: 7", "should be text, not 7", None),
        ("version: 1", "version: 1\ndata: 3", "should be a mapping of keys to values, not 3", None),
    ],
)
def test_mistakes_that_people_make_get_hints(
    recipe: Path, old: str, new: str, says: str, hint: str | None
) -> None:
    recipe.write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError) as refused:
        load(recipe)
    assert says in refused.value.message
    assert refused.value.hint is None if hint is None else hint in str(refused.value.hint)
    assert refused.value.others == ()
