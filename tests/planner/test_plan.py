"""The DAG, and what the planner says of each tensor."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from llmopt import planner
from llmopt.artifact import describe_files, write_records
from llmopt.errors import RecipeError
from llmopt.planner import Plan
from llmopt.recipe import from_data
from llmopt.sources import DEMO_MODEL
from tests.artifacts import manifest_of

STEP = {"id": "q", "quantize": {"method": "rtn"}}


def planned(tmp_path: Path, *steps: dict, **recipe: object) -> Plan:
    data = {"version": 1, "model": "demo", **recipe, "steps": list(steps)}
    return planner.plan(*from_data(data), tmp_path / "out", fetch=False)


def test_steps_run_after_what_they_need_whatever_the_order(tmp_path: Path) -> None:
    bench = {"id": "score", "bench": {"from": "q"}}
    plan = planned(tmp_path, bench, STEP)
    assert [s.id for s in plan.steps] == ["q", "q.gate", "score"]
    assert plan.by_id("score").parents == ("model", "q")


def test_a_matrix_is_all_its_combinations(tmp_path: Path) -> None:
    step = {"id": "q", "matrix": {"grid": ["int4", "int8"], "group_size": [64, -1]},
            "quantize": {"method": "rtn", "gate": []}}  # fmt: skip
    plan = planned(tmp_path, step, {"id": "s", "bench": {"from": "q"}})
    names = ["q-int4-64", "q-int4-_1", "q-int8-64", "q-int8-_1"]
    assert plan.by_id("s").parents[1:] == tuple(names)
    assert plan.by_id("q-int8-_1").document()["group_size"] == -1


def test_every_tensor_has_one_change(tmp_path: Path) -> None:
    step = planned(tmp_path, STEP).by_id("q")
    names = [change.name for change in step.changes]
    assert len(names) == len(set(names))
    quantized = {change.name for change in step.changes if change.quantized}
    assert "model.layers.4.mlp.down_proj.weight" in quantized
    assert len(quantized) == 35
    assert "model.embed_tokens.weight" not in quantized
    # 4-bit codes, a float16 scale and a 4-bit zero per 128 inputs, and the index
    found = [change for change in step.changes if change.quantized]
    size, weights = sum(f.bytes for f in found), sum(math.prod(f.shape) for f in found)
    assert 4.15 < size * 8 / weights < 4.35


def test_the_last_matching_override_wins(tmp_path: Path) -> None:
    overrides = [
        {"match": "*.mlp.*", "grid": "int8"},
        {"match": "*.0.mlp.down_proj", "skip": True},
        {"match": "*.1.mlp.down_proj", "group_size": 64},
    ]
    step = planned(
        tmp_path, {"id": "q", "quantize": {"method": "rtn", "overrides": overrides}}
    ).by_id("q")
    changes = {change.name: change for change in step.changes}
    assert changes["model.layers.0.mlp.down_proj.weight"].quantized is None
    changed = changes["model.layers.1.mlp.down_proj.weight"].quantized
    assert changed is not None
    assert (changed.grid, changed.group_size) == ("int8", 64)


def test_a_tied_head_that_is_quantized_becomes_a_tensor(tmp_path: Path) -> None:
    step = planned(tmp_path, {"id": "q", "quantize": {"method": "rtn", "head": True}}).by_id("q")
    assert step.changes[-1].name == "lm_head.weight"
    assert step.changes[-1].quantized is not None


def test_calibration_text_decides_the_scale_search(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 100)
    data = {"calibration": {"source": str(text)}}
    assert planned(tmp_path, STEP).by_id("q").document()["scale_search"] == "mse"
    assert planned(tmp_path, STEP, data=data).by_id("q").document()["scale_search"] == "importance"


def test_changed_text_changes_the_key(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    keys = set()
    for words in ("one ", "two "):
        text.write_text(words * 100)
        step = planned(tmp_path, STEP, data={"calibration": {"source": str(text)}}).by_id("q")
        keys.add(step.digest_key({"model": "same"}))
    assert len(keys) == 2


def test_gate_does_not_change_what_is_built(tmp_path: Path) -> None:
    other = {"id": "q", "quantize": {"method": "rtn", "gate": ["kl.mean < 1"]}}
    keys = {planned(tmp_path, s).by_id("q").digest_key({"model": "m"}) for s in (STEP, other)}
    assert len(keys) == 1


def test_a_gate_that_compares_needs_something_to_compare_with(tmp_path: Path) -> None:
    for gate, refused in (("kl.mean.high < 1", True), ("size.ratio < 1", True),
                          ("perplexity.high < 9", False)):  # fmt: skip
        bench = {"id": "s", "bench": {"from": "q", "against": None, "gates": [gate]}}
        if refused:
            with pytest.raises(RecipeError, match="compares with another, and there is none"):
                planned(tmp_path, STEP, bench)
        else:
            planned(tmp_path, STEP, bench)


def test_timing_models_takes_a_process_more(tmp_path: Path) -> None:
    memory = [
        planned(tmp_path, STEP, {"id": "s", "bench": {"from": "q", "speed": speed}})
        .by_id("s")
        .footprint.memory_bytes
        for speed in (False, True)
    ]
    assert memory[0] < memory[1]


def test_a_step_builds_on_one_model(tmp_path: Path) -> None:
    again = planned(tmp_path, STEP, {"id": "again", "quantize": {"from": "q", "method": "rtn"}})
    assert again.by_id("again").parents == ("q",)
    with pytest.raises(RecipeError, match="'s' is no model"):
        planned(
            tmp_path, STEP, {"id": "s", "bench": {"from": "q"}},
            {"id": "again", "quantize": {"from": "s", "method": "rtn"}},
        )  # fmt: skip


def test_what_others_wrote_is_not_a_destination(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(Exception, match="not an llmopt artifact"):
        planned(tmp_path, STEP)


def test_folders_from_outside_can_be_measured(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(DEMO_MODEL, tmp_path / parent / "w4")
        files = describe_files(tmp_path / parent / "w4")
        write_records(tmp_path / parent / "w4", manifest_of(files), None)
    sources = [str(tmp_path / parent / "w4") for parent in ("a", "b")]
    plan = planned(tmp_path, {"id": "s", "bench": {"from": sources}})
    assert plan.steps[0].parents[1:] == ("w4", "w4-2")
    assert plan.steps[0].document()["runtimes"] == dict.fromkeys(["w4", "w4-2", "model"], "torch")
    assert plan.folder_of("w4-2") == tmp_path / "b" / "w4"


def test_memory_grows_with_the_block_not_with_the_model(tmp_path: Path) -> None:
    small = planned(tmp_path, STEP).by_id("q").footprint
    more = planned(
        tmp_path, {"id": "q", "quantize": {"method": "gptq"}}, data={"calibration": {"source": "demo"}}
    ).by_id("q").footprint  # fmt: skip
    assert 0 < small.memory_bytes < more.memory_bytes < 2 << 30


def test_a_card_whose_licence_cannot_be_read_is_refused_before_work(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    quantize = {"id": "q", "quantize": {"method": "rtn"}}
    with pytest.raises(RecipeError, match=r"model: the front matter of .* is not valid YAML"):
        planned(tmp_path, quantize, model=str(model))
    assert planned(tmp_path, {"id": "s", "bench": {}}, model=str(model)).steps


def test_names_that_no_file_can_have_are_refused_where_they_stand(tmp_path: Path) -> None:
    name = "x" * 5000
    gguf = {"id": "g", "convert": {"to": "gguf:Q4_K_M", "imatrix": name}}
    size = {"id": "g", "convert": {"to": "gguf", "target_size": "9" * 400}}
    for steps, recipe, key in (
        ([STEP], {"model": name}, "model"),
        ([STEP], {"data": {"calibration": {"source": name}}}, "data.calibration.source"),
        ([STEP, {"id": "s", "bench": {"from": name}}], {}, "steps[1].bench.from"),
        ([gguf], {}, "steps[0].convert.imatrix"),
        ([size], {"data": {"calibration": {"source": "demo"}}}, "steps[0].convert.target_size"),
    ):
        with pytest.raises(RecipeError) as refused:
            planned(tmp_path, *steps, **recipe)
        assert refused.value.key == key


def test_no_step_is_called_what_the_planner_calls_its_own(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'q\.gate' is what the planner calls") as refused:
        planned(tmp_path, STEP, {"id": "q.gate", "quantize": {"method": "rtn", "gate": []}})
    assert refused.value.key == "steps[1].id"


def test_all_steps_that_name_what_is_not_there_are_told_at_once(tmp_path: Path) -> None:
    first = {"id": "a", "convert": {"from": "x", "to": "awq"}}
    second = {"id": "b", "bench": {"from": "q", "against": "y"}}
    with pytest.raises(RecipeError) as refused:
        planned(tmp_path, STEP, first, second)
    assert [each.message.split()[-1] for each in refused.value.all] == ["x", "y"]
