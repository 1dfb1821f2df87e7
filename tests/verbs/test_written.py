"""What was planned, what is written, what configs say of it and what ledgers say: all the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt import pipeline, planner
from llmopt.artifact import Artifact
from llmopt.errors import LlmoptError, RecipeError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.model.change import ConfigChange
from llmopt.model.layout import Layout
from llmopt.model.ledger import LedgerEntry
from llmopt.planner import Plan
from llmopt.recipe import from_data
from llmopt.specs import load
from llmopt.step import Outcome, RunOptions, Work
from llmopt.verbs.shared import written
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import HELD_OUT, TEXT

CT = {"format": "compressed-tensors"}
ROWS = {"group_size": -1}
#: source -> (verb, settings)
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq int8": ("quantize", {"format": "gptq", "grid": "int8", "head": True}),
    "gptq int4 asym": ("quantize", {"format": "gptq_v2", "symmetric": False}),
    "gptq act-order": ("quantize", {"format": "gptq", "method": "gptq", "act_order": "full"}),
    "awq": ("quantize", {"format": "awq"}),
    "ct int3": ("quantize", {**CT, "grid": "int3", "symmetric": False}),
    "ct w8a8": ("quantize", {**CT, **ROWS, "grid": "int8", "activations": "int8"}),
    "ct fp8": ("quantize", {**CT, **ROWS, "grid": "fp8", "head": True}),
    "nf4": ("quantize", {"format": "bitsandbytes-nf4", "grid": "nf4", "group_size": 64}),
    "bnb int8": ("quantize", {**ROWS, "format": "bitsandbytes-int8", "grid": "int8"}),
    "gguf": ("convert", {"to": "gguf", "preset": "Q4_0"}),
}
#: target -> settings
TARGETS: dict[str, dict[str, Any]] = {
    "gptq": {"format": "gptq"},
    "gptq_v2": {"format": "gptq_v2", "symmetric": False},
    "awq": {"format": "awq"},
    "compressed-tensors": CT,
    "bitsandbytes-nf4": {"format": "bitsandbytes-nf4", "grid": "nf4", "group_size": 64},
}
#: source -> the targets that take its linears as they are
HELD = {
    "gptq int8": {"gptq", "gptq_v2", "compressed-tensors"},
    "gptq int4 asym": {"gptq", "gptq_v2", "awq", "compressed-tensors"},
    "gptq act-order": {"gptq", "gptq_v2", "compressed-tensors"},
    "awq": {"gptq", "gptq_v2", "awq", "compressed-tensors"},
    "ct int3": {"gptq", "gptq_v2", "compressed-tensors"},
    "ct w8a8": {"compressed-tensors"},
    "ct fp8": {"compressed-tensors"},
    "nf4": {"bitsandbytes-nf4"},
    "bnb int8": {"gptq", "gptq_v2", "compressed-tensors"},
    "gguf": set(),
}
SKIPS = [{"match": "*.v_proj", "skip": True}]

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    models.save_with_bytes(folder / "model", "llama", num_hidden_layers=1, hidden_size=64,
                               intermediate_size=64)  # fmt: skip
    (folder / "text.txt").write_text(TEXT * 40)
    (folder / "held-out.txt").write_text(HELD_OUT * 20)
    return folder


def planned(
    scratch: Path, model: Path, out: Path, verb: str, *then: dict[str, Any], **settings: Any
) -> Plan:
    usual = {"method": "rtn", "group_size": 32} if verb == "quantize" else {}
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(scratch / "text.txt"), "sequences": 2, "length": 32},
            "evaluation": {"source": str(scratch / "held-out.txt"), "windows": 2, "length": 32},
        },
        "steps": [{"id": "step", verb: {"gate": [], **usual, **settings}}, *then],
    }
    return planner.plan(*from_data(data), out)


def run(plan: Plan) -> Artifact:
    done = pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[-1].artifact
    agrees(plan, done)
    return done


def agrees(plan: Plan, done: Artifact) -> None:
    """Plan, headers with config, and ledger say the same of every tensor."""
    found = read_contents(done.path).tensors
    changes = {each.name: each for each in plan.steps[-1].changes}
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    assert changes.keys() == ledger.keys()
    assert found.keys() == {name for name, each in changes.items() if each.written}
    for name, tensor in found.items():
        change, entry = changes[name], ledger[name]
        assert (tensor.nbytes, tensor.shape) == (entry["bytes"], tuple(entry["shape"])), name
        assert entry["actions"] == list(change.actions)
        assert entry.get("to") in [
            each.label if each else None for each in (change.layout, *change.options)
        ]
        assert (tensor.layout is None) == ("layout" not in entry) or done.manifest[
            "format"
        ] == "gguf"
    stored = Checkpoint.open(done.path)
    for module in stored.layers:  # as readers of such files take them
        assert stored.read_layer(module) is not None


@pytest.fixture(scope="module")
def make(scratch: Path) -> Make:
    def source(name: str) -> Path:
        verb, settings = SOURCES[name]
        out = scratch / name.replace(" ", "-")
        if not out.exists():
            return run(planned(scratch, scratch / "model", out, verb, **settings)).path
        return out if (out / "config.json").exists() else out / "step"

    return source


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_skipped_stays_as_it_came_or_is_refused_before_work(
    name: str, make: Make, scratch: Path, tmp_path: Path
) -> None:
    model = make(name)
    before = Checkpoint.open(model)
    for target, settings in TARGETS.items():
        out = tmp_path / target
        if target not in HELD[name]:
            with pytest.raises(RecipeError, match="is left as it came") as caught:
                planned(scratch, model, out, "quantize", **settings, overrides=SKIPS)
            assert "llmopt convert --to hf" in str(caught.value.hint)
            continue
        done = run(planned(scratch, model, out, "quantize", **settings, overrides=SKIPS))
        after, module = Checkpoint.open(done.path), "model.layers.0.self_attn.v_proj"
        assert (after.weight(module) == before.weight(module)).all()
        assert after.layers[module].grid == before.layers[module].grid


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_converted_or_quantized_anew_is_what_was_planned(
    name: str, make: Make, scratch: Path, tmp_path: Path
) -> None:
    model = make(name)
    run(planned(scratch, model, tmp_path / "plain", "convert", to="hf"))
    run(planned(scratch, model, tmp_path / "blocks", "convert", to="gguf", preset="Q8_0"))
    run(planned(scratch, model, tmp_path / "anew", "quantize", **CT, head=True, symmetric=False))


def test_the_hint_of_a_refusal_works(make: Make, scratch: Path, tmp_path: Path) -> None:
    model = make("bnb int8")
    with pytest.raises(RecipeError) as caught:
        planned(scratch, model, tmp_path, "quantize", format="awq", overrides=SKIPS)
    message, hint = caught.value.message, caught.value.hint or ""
    assert message.endswith(
        "model.layers.0.self_attn.v_proj.weight is left as it came, int8 row sym, "
        "and format awq cannot hold int8"
    )
    chosen = hint.partition(" can")[0].removeprefix("format: ")
    run(planned(scratch, model, tmp_path, "quantize", format=chosen, overrides=SKIPS))


@pytest.mark.parametrize(
    ("verb", "settings"),
    [("quantize", {"method": "rtn", "group_size": 32}), ("convert", {"to": "hf"})],
)
def test_a_head_that_turns_out_to_be_the_embedding_is_no_surprise(
    verb: str, settings: dict[str, Any], scratch: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(scratch / "model", model)
    tensors = load_file(model / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, model / "model.safetensors", {"format": "pt"})
    then = {"id": "then", verb: {"from": "step", "gate": [], **settings}}
    plan = planned(scratch, model, tmp_path / "out", "convert", then, to="gguf")
    for result in pipeline.run(plan, RunOptions("cpu"), Log()).results:
        ledger = {entry["name"]: entry for entry in result.artifact.manifest["ledger"]}
        assert ledger["lm_head.weight"]["actions"] == ["tied"]
        changes = {change.name: change for change in plan.by_id(result.artifact.name).changes}
        assert not changes["lm_head.weight"].settled


Lie = Callable[[Outcome], None]


def of_tensor(name: str, /, **members: Any) -> Lie:
    """The ledger says something else of a tensor."""

    def lie(outcome: Outcome) -> None:
        outcome.ledger = [
            replace(each, **members) if name in each.name else each for each in outcome.ledger
        ]

    return lie


def of_config(*members: ConfigChange) -> Lie:
    """The record of the config says something else."""

    def lie(outcome: Outcome) -> None:
        outcome.config_changes = (*outcome.config_changes[:-1], *members)

    return lie


V_PROJ, NORM = "self_attn.v_proj.weight", "input_layernorm"
INT8 = Layout(grid="int8", group_size=32, symmetric=True)
LIES: dict[str, tuple[Lie, str]] = {
    "name": (of_tensor(NORM, name="model.more.weight"), "was planned, and nothing became of it"),
    "source": (of_tensor(NORM, sources=("model.norm.weight",)), "is made from model.norm.weight"),
    "action": (of_tensor(V_PROJ, actions=("kept",)), "was kept, not quantized"),
    "dropped": (of_tensor(NORM, actions=("dropped",)), "was planned, and nothing became of it"),
    "folded": (of_tensor(V_PROJ, actions=("folded",)), "was folded, not quantized"),
    "shape": (of_tensor(V_PROJ, shape=(32, 65)), r"has the shape \[32, 65\], not"),
    "layout": (of_tensor(V_PROJ, layout=INT8), "is int8 g32 sym, not int4 g32 sym"),
    "plain": (of_tensor(V_PROJ, layout=None), "is plain, not int4 g32 sym"),
    "bytes": (of_tensor(V_PROJ, bytes=1), r"takes 1 bytes, not [\d,]+"),
    "dtype": (of_tensor(NORM, dtype="F16"), "is F16, not F32"),
    "no config": (of_config(), "quantization_config in config.json was to be written otherwise"),
    "config": (
        of_config(ConfigChange(key=("quantization_config",), value={})),
        "quantization_config in config.json is not what was planned",
    ),
    "more config": (
        of_config(ConfigChange(key=("quantization_config",), removed=True)),
        "quantization_config in config.json was to be written otherwise",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_is_carried_out_otherwise_than_planned_is_not_published(
    kind: str, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie, message = LIES[kind]
    verb = load("llmopt.verbs.quantize.run")
    honest = verb.run

    def run(work: Work) -> Outcome:
        outcome: Outcome = honest(work)
        lie(outcome)
        return outcome

    monkeypatch.setattr(verb, "run", run)
    plan = planned(scratch, scratch / "model", tmp_path / "out", "quantize", format="gptq")
    with pytest.raises(LlmoptError, match=message) as caught:
        pipeline.run(plan, RunOptions("cpu"), Log())
    assert "publishes nothing" in caught.value.message
    assert not (tmp_path / "out" / "step").exists()


def cast(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16()}


#: what is done to a file behind the writer's back -> what is said of it
DAMAGE: dict[str, tuple[Callable[[str, torch.Tensor], dict[str, torch.Tensor]], str]] = {
    "dtype": (cast, "is BF16, not F32"),
    "shape": (lambda name, tensor: {name: tensor[1:].clone()}, r"has the shape \[63\], not"),
    "missing": (lambda name, tensor: {}, "is missing"),
    "more": (lambda name, tensor: {name: tensor, "more": tensor.clone()}, "nothing is said of it"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_written_otherwise_than_said_is_found(
    kind: str, scratch: Path, tmp_path: Path
) -> None:
    damage, message = DAMAGE[kind]
    plan = planned(scratch, scratch / "model", tmp_path / "out", "quantize", format="gptq")
    done = run(plan)
    path = done.path / "model.safetensors"
    name, tensors = "model.norm.weight", load_file(path)
    save_file(tensors | damage(name, tensors.pop(name)), path)
    outcome = Outcome(
        format="gptq",
        ledger=[LedgerEntry.of_change(each) for each in plan.steps[-1].changes],
        config_changes=plan.steps[-1].config_changes,
    )
    with pytest.raises(LlmoptError, match=message):
        written.check(plan.steps[-1], outcome, scratch / "model", done.path)


def test_a_config_that_says_more_than_was_planned_is_found(scratch: Path, tmp_path: Path) -> None:
    plan = planned(scratch, scratch / "model", tmp_path / "out", "convert", to="gguf")
    done = run(plan)
    config = done.path / "config.json"
    config.write_text(config.read_text().replace("{", '{"more": 1,', 1))
    step = plan.steps[-1]
    outcome = Outcome(
        format="gguf",
        ledger=[LedgerEntry.of_change(each) for each in step.changes],
        config_changes=step.config_changes,
    )
    with pytest.raises(LlmoptError, match=r"config\.json has members"):
        written.check(step, outcome, scratch / "model", done.path)


def test_a_tensor_that_a_plan_forgot_is_found(scratch: Path) -> None:
    before = read_contents(scratch / "model")
    entries = [
        LedgerEntry(name=name, actions=("kept",), shape=tensor.shape, bytes=tensor.nbytes)
        for name, tensor in before.tensors.items()
    ]
    written.check_sources(before, entries)
    with pytest.raises(LlmoptError, match=f"{entries[3].name} is lost"):
        written.check_sources(before, entries[:3] + entries[4:])
    with pytest.raises(LlmoptError, match="more is no tensor that anything is made from"):
        written.check_sources(before, [*entries, replace(entries[0], sources=("more",))])
