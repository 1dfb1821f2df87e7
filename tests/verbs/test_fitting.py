"""Plans choose how a step keeps to its memory, and refuse what cannot fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmopt import machine, planner
from llmopt.cli.flags import COMMON
from llmopt.errors import RecipeError, RequestError
from llmopt.planner import Plan
from llmopt.preflight import check
from llmopt.recipe import from_data, load
from llmopt.sources import DEMO_MODEL
from llmopt.step import RunOptions
from scripts.random_checkpoint import config_of, write_model

GIB = 1 << 30
GPTQ = {"id": "q", "quantize": {"method": "gptq"}}
ALONE = {"id": "q", "quantize": {"method": "gptq", "gate": []}}
LONG = {"calibration": {"source": "demo", "sequences": 4, "length": 8192}}
GGUF = {"id": "q", "convert": {"to": "gguf:Q4_K_M", "method": "gptq"}}


def planned(folder: Path, model: Path | str, step: dict[str, object], **recipe: object) -> Plan:
    data = {"version": 1, "model": str(model), "steps": [step], **recipe}
    data.setdefault("data", {"calibration": {"source": "demo", "sequences": 128}})
    return planner.plan(*from_data(data), folder / "out")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama's 8 billion parameters, in headers alone."""
    folder = tmp_path_factory.mktemp("large") / "llama-8b"
    write_model(folder, config_of("llama-8b"), dtype=torch.bfloat16, hollow=True)
    return folder


@pytest.fixture(autouse=True)
def _laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 24 * GIB)


@pytest.mark.parametrize(("step", "sequences"), [(GPTQ, 128), (GGUF, 32)])
@pytest.mark.parametrize("limit", [None, "8GiB"])
def test_eight_billion_parameters_fit(
    tmp_path: Path, large: Path, step: dict[str, object], sequences: int, limit: str | None
) -> None:
    """With the default gate, and whatever the number of blocks."""
    data = {"calibration": {"source": "demo", "sequences": sequences, "length": 512}}
    plan = planned(tmp_path, large, step, data=data, max_memory=limit)
    most = 12 * GIB if limit is None else 8 * GIB
    assert [each.id for each in plan.steps] == ["q", "q.gate"]
    for each in plan.steps:
        assert each.footprint.memory_bytes <= most
    assert not plan.by_id("q.gate").arrangement.whole_models
    assert plan.by_id("q").settings.document().get("batch_size") == 2


def test_shards_of_a_large_model_take_no_second_copy(tmp_path: Path, large: Path) -> None:
    data = {"calibration": {"source": "demo", "sequences": 32, "length": 512}}
    step = planned(tmp_path, large, GPTQ, data=data).by_id("q")
    assert step.footprint.disk_bytes == sum(change.bytes for change in step.changes)


def test_a_walk_that_only_looks_keeps_no_inputs_on_disk(tmp_path: Path, large: Path) -> None:
    step = {"id": "q", "convert": {"to": "imatrix"}}
    found = planned(tmp_path, large, step).by_id("q").footprint.disk_bytes
    activations = 4 * 128 * 512 * 4096
    assert 2 * activations < found < 2.1 * activations  # saved ones, and what replaces them


def needed(tmp_path: Path, **recipe: object) -> int:
    return planned(tmp_path, "demo", ALONE, **recipe).by_id("q").footprint.memory_bytes


def test_what_changes_no_bytes_is_tried_first(tmp_path: Path, large: Path) -> None:
    usual = planned(tmp_path, large, ALONE, data=LONG)
    most = usual.by_id("q").footprint.memory_bytes
    assert not usual.by_id("q").arrangement.activations_in_file
    leaner = planned(tmp_path, large, ALONE, data=LONG, max_memory=most - 1).by_id("q")
    assert leaner.arrangement.activations_in_file
    assert leaner.document() == usual.by_id("q").document()
    assert leaner.footprint.disk_bytes > usual.by_id("q").footprint.disk_bytes
    least = leaner.footprint.memory_bytes
    one = planned(tmp_path, large, ALONE, data=LONG, max_memory=least - 1).by_id("q")
    assert one.document()["batch_size"] == 1
    assert one.footprint.memory_bytes < least < most


def test_what_cannot_fit_names_what_would(tmp_path: Path, large: Path) -> None:
    def of(length: int) -> dict[str, object]:
        return {"calibration": {"source": "demo", "sequences": 4, "length": length}}

    model = json.loads((large / "config.json").read_text()) | {"max_position_embeddings": 1 << 15}
    write_model(tmp_path / "long", model, dtype=torch.bfloat16, hollow=True)
    large = tmp_path / "long"
    with pytest.raises(RecipeError, match=r"q needs .* at least, and may hold 1 MiB") as refused:
        planned(tmp_path, large, ALONE, data=of(16384), max_memory="1MiB")
    assert refused.value.key == "max_memory"
    enough = str(refused.value.hint).partition("max_memory: ")[2].partition(" ")[0]
    planned(tmp_path, large, ALONE, data=of(16384), max_memory=enough)
    less = f"{float(enough.removesuffix('GiB')) - 0.2}GiB"
    with pytest.raises(RecipeError, match="q needs") as refused:
        planned(tmp_path, large, ALONE, data=of(16384), max_memory=less)
    hint = str(refused.value.hint)
    assert hint.startswith("length: ")
    length = int(hint.partition(": ")[2].split()[0])
    planned(tmp_path, large, ALONE, data=of(length), max_memory=less)


def test_a_flag_is_named_where_there_is_one(tmp_path: Path) -> None:
    from llmopt.cli import flags as f

    names = {flag.key: flag.option(None) for flag in f.recipe_flags((*f.CALIBRATION, *COMMON))}
    data = {
        "version": 1, "model": "demo", "max_memory": "1MiB", "steps": [ALONE],
        "data": {"calibration": {"source": "demo"}},
    }  # fmt: skip
    with pytest.raises(RecipeError, match="--max-memory") as refused:
        planner.plan(*from_data(data, names), tmp_path / "out")
    assert "--max-memory" in str(refused.value.hint)


def test_without_a_limit_nothing_is_refused_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 1 << 20)
    plan = planned(tmp_path, "demo", ALONE)
    assert plan.by_id("q").arrangement.activations_in_file
    assert plan.by_id("q").document()["batch_size"] == 2
    with pytest.raises(RequestError, match=r"q needs .* of memory, and this machine has 1.0 MB"):
        check(plan, RunOptions("cpu"))


def test_the_limit_enters_no_key(tmp_path: Path) -> None:
    keys = {
        planned(tmp_path, "demo", ALONE, max_memory=limit).by_id("q").digest_key({"model": "0"})
        for limit in (None, "9GiB", needed(tmp_path) - 1)
    }
    assert len(keys) == 1


def test_sizes_are_read_as_recipes_write_them(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        json.dumps({"version": 1, "model": str(DEMO_MODEL), "max_memory": "6GB", "steps": [ALONE]})
    )
    assert load(tmp_path / "r.yaml")[0].max_memory == 6 * 10**9
    assert load(tmp_path / "r.yaml", ["max_memory=8GiB"])[0].max_memory == 8 * GIB
    with pytest.raises(RecipeError, match="is no size"):
        load(tmp_path / "r.yaml", ["max_memory=much"])


def test_a_bench_of_large_models_is_refused_for_its_timing_alone(
    tmp_path: Path, large: Path
) -> None:
    bench = {"id": "s", "bench": {"from": "model", "against": None}}
    with pytest.raises(RecipeError, match="s needs") as refused:
        planned(tmp_path, large, bench, max_memory="8GiB")
    assert str(refused.value.hint).startswith("speed: false fits")
    timed = {"id": "s", "bench": {"from": "model", "against": None, "speed": False}}
    step = planned(tmp_path, large, timed, max_memory="8GiB").by_id("s")
    assert not step.arrangement.whole_models
