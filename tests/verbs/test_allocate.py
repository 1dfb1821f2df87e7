"""A quantize step with a budget, from the plan to the files, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt import pipeline, planner
from llmopt.errors import RecipeError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.recipe import from_data
from llmopt.recipe.fields import parse_size
from llmopt.runtimes.torch import load
from llmopt.specs import load as load_module
from llmopt.step import RunOptions
from tests import models as tiny
from tests.test_pipeline import Log

FEW = ["int2 g32", "int4 g32", "int8 row"]


def planned(tmp_path: Path, model: Path, *then: dict[str, Any], **settings: Any) -> planner.Plan:
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(tmp_path / "text.txt"), "sequences": 8, "length": 48},
            "evaluation": {"source": str(tmp_path / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": [
            {"id": "q", "quantize": {"method": "rtn", "gate": [], "candidates": FEW, **settings}},
            *then,
        ],
    }
    return planner.plan(*from_data(data), tmp_path / "out")


def run(plan: planner.Plan) -> list[pipeline.StepResult]:
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results


def stored_bits(folder: Path) -> float:
    """Bits a quantized weight in the files, by their headers."""
    checkpoint = Checkpoint.open(folder)
    names = {name.rpartition(".")[0] for name in checkpoint.stored} & checkpoint.layers.keys()
    headers = read_file_headers(folder / "model.safetensors")
    size = sum(h.nbytes for n, h in headers.items() if n.rpartition(".")[0] in names)
    weights = sum(checkpoint.read_layer(name).codes.numel() for name in names)
    return size * 8 / weights


def test_a_budget_is_met_and_the_manifest_says_how(make: Any, tmp_path: Path) -> None:
    plan = planned(tmp_path, make("llama", attention_bias=False), target_bpw=5.2)
    assert [step.id for step in plan.steps] == ["q.allocation", "q"]
    assert plan.by_id("q").parents == ("model", "q.allocation")
    done = run(plan)[-1].artifact
    evidence = done.manifest["evidence"]["allocation"]
    assert stored_bits(done.path) == pytest.approx(evidence["bits_per_weight"], abs=1e-3)
    assert 4.5 < evidence["bits_per_weight"] <= 5.2
    assert evidence["predicted_kl"] > 0
    config = json.loads((done.path / "quantize_config.json").read_text())
    assert config["dynamic"]
    layers = Checkpoint.open(done.path).layers
    assert len({layout.bits for layout in layers.values()}) > 1
    for row in evidence["sensitivity"]:
        assert len({layers[name] for name in row["linears"]}) == 1
    labels = {e["name"]: e["to"] for e in done.manifest["ledger"] if "quantized" in e["actions"]}
    for row in evidence["sensitivity"]:
        assert {labels[f"{name}.weight"] for name in row["linears"]} == {row["chosen"]}
    assert load(done.path).logits(tiny.tokens(1, 8, 90)).isfinite().all()


def test_nothing_is_done_twice_and_a_lost_part_is_made_again(make: Any, tmp_path: Path) -> None:
    plan = planned(tmp_path, make("llama"), target_bpw=5.0)
    first = run(plan)
    assert [result.reused for result in run(plan)] == [True, True]
    shutil.rmtree(first[0].artifact.path)
    again = run(plan)
    assert [result.reused for result in again] == [False, True]
    assert again[0].artifact.digest == first[0].artifact.digest


def test_a_size_in_bytes_covers_the_whole_file(make: Any, tmp_path: Path) -> None:
    done = run(planned(tmp_path, make("gpt2"), target_size="110kB"))[-1].artifact
    size = sum(path.stat().st_size for path in done.path.glob("*.safetensors"))
    assert 90_000 < size <= 110_000


def test_an_override_is_not_the_budgets_to_change(make: Any, tmp_path: Path) -> None:
    overrides = [{"match": "*.0.mlp.down_proj", "grid": "int8", "group_size": 32},
                 {"match": "*.1.mlp.down_proj", "skip": True}]  # fmt: skip
    model = make("llama")
    done = run(planned(tmp_path, model, target_bpw=5.0, overrides=overrides))[-1].artifact
    layers = Checkpoint.open(done.path).layers
    assert "model.layers.1.mlp.down_proj" not in layers
    assert layers["model.layers.0.mlp.down_proj"].bits == 8
    assert layers["model.layers.0.mlp.down_proj"].group_size == 32
    assert done.manifest["evidence"]["allocation"]["bits_per_weight"] <= 5.0


#: a budget for the attention alone, and then the rest
SKIP_MLP = [{"match": "*.mlp.*", "skip": True}]
THE_REST: dict[str, Any] = {
    "from": "q", "method": "rtn", "group_size": 32, "gate": [],
    "overrides": [{"match": "*.self_attn.*", "skip": True}],
}  # fmt: skip


@pytest.mark.parametrize("target", ["gptq", "gptq_v2", "compressed-tensors"])
def test_what_a_budget_chose_is_left_as_it_came(make: Any, tmp_path: Path, target: str) -> None:
    then = {"id": "then", "quantize": {**THE_REST, "format": target}}
    plan = planned(tmp_path, make("llama"), then, target_bpw=5.2, overrides=SKIP_MLP)
    *_, first, done = (result.artifact for result in run(plan))
    before, after = Checkpoint.open(first.path), Checkpoint.open(done.path)
    changes = {change.module: change for change in plan.by_id("then").changes}
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    written = read_contents(done.path).tensors
    assert any(changes[module].layout != layout for module, layout in before.layers.items())
    for module, layout in before.layers.items():
        entry = ledger[f"{module}.weight"]
        assert torch.equal(after.weight(module), before.weight(module))
        assert after.layers[module] == layout
        assert (entry["actions"], entry["to"]) == (["kept"], layout.label)
        assert entry["bytes"] == written[f"{module}.weight"].nbytes
        assert "settled" not in entry
        assert not changes[module].settled
    anew = after.layers.keys() - before.layers.keys()
    assert anew == {name for name in after.layers if ".mlp." in name}
    assert {after.layers[name].label for name in anew} == {"int4 g32 sym"}
    config = json.loads((done.path / "config.json").read_text())
    said = [
        each["value"]
        for each in done.manifest["config_changes"]
        if each["key"] == ["quantization_config"]
    ]
    assert said == [config["quantization_config"]]


def test_what_no_config_can_say_of_what_is_left_is_refused_before_work(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = {"id": "then", "quantize": {**THE_REST, "format": "awq"}}
    groups = ["int4 g32", "int4 row"]
    settings = {"group_size": 32, "candidates": groups, "overrides": SKIP_MLP}
    plan = planned(tmp_path, make("llama"), then, target_bpw=5.2, **settings)
    walked: list[str] = []
    verb = load_module("llmopt.verbs.quantize.run")
    honest = verb.walk

    def walk(checkpoint: Checkpoint, *rest: Any, **options: Any) -> Any:
        walked.append(checkpoint.folder.name)
        return honest(checkpoint, *rest, **options)

    monkeypatch.setattr(verb, "walk", walk)
    with pytest.raises(RequestError, match="AWQ has one group size for the whole model"):
        run(plan)
    assert walked == ["model-llama"]


def test_a_size_counts_what_an_earlier_budget_chose(make: Any, tmp_path: Path) -> None:
    then = {"id": "then", "quantize": {**THE_REST, "target_size": "130kB",
            "candidates": ["int2 g32", "int4 g32", "int8 g32"]}}  # fmt: skip
    # the plan takes the last candidate for what the first budget is going to choose
    plan = planned(tmp_path, make("llama"), then, target_size="330kB", overrides=SKIP_MLP,
                   candidates=["int8 g32", "int4 g32", "int2 g32"])  # fmt: skip
    done = run(plan)[-1].artifact
    assert 100_000 < sum(p.stat().st_size for p in done.path.glob("*.safetensors")) <= 130_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_bpw": 2.0}, "the smallest candidates take"),
        ({"target_bpw": 4.0, "target_size": "1MB"}, "one budget"),
        ({"target_bpw": 4.0, "head": True}, "not the head"),
        ({"target_bpw": 4.0, "candidates": ["int5 g32"]}, "unknown grid 'int5'"),
        ({"target_bpw": 4.0, "candidates": ["four bits"]}, "is no candidate"),
        ({"target_bpw": 4.0, "candidates": ["int4 g64"]}, "divides the 96 inputs"),
        ({"target_bpw": 4.0, "candidates": ["int4 g24 asym", "fp8"]}, "cannot hold the candidate"),
        ({"target_size": "small"}, "is no size"),
        ({"target_bpw": 5.0, "format": "awq", "candidates": ["int4 g32", "int4 g64"]}, "AWQ"),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(
    make: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(tmp_path, make("llama"), **settings)


def test_a_lone_steps_allocation_stands_hidden_beside_it(make: Any, tmp_path: Path) -> None:
    data = {"version": 1, "model": str(make("llama")), "steps": [
        {"id": "w", "quantize": {"method": "rtn", "target_bpw": 5.0, "candidates": FEW}}],
        "data": {"calibration": {"source": str(tmp_path / "text.txt")}}}  # fmt: skip
    plan = planner.plan(*from_data(data), tmp_path / "w")
    assert plan.outputs == {"w.allocation": tmp_path / ".w.allocation", "w": tmp_path / "w"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5MB", 5_000_000),
        ("1.5GiB", 1536 << 20),
        ("700k", 700_000),
        (12345, 12345),
        ("9 B", 9),
        ("1KB", 1000),
        ("2 kib", 2048),
        ("3mb", 3_000_000),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    with pytest.raises(RequestError):
        parse_size(f"{text}x")


@pytest.mark.parametrize("text", ["0", "-1", "9" * 400, "1e999", "KB", "", "1.", 0, -1])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(RequestError, match="is no size"):
        parse_size(text)
