"""What was planned, what is written, what configs say of it and what ledgers say: all the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmopt import pipeline, planner
from llmopt.artifact import Artifact
from llmopt.errors import LlmoptError, RecipeError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.model.ledger import LedgerEntry
from llmopt.planner import Plan
from llmopt.recipe import from_data
from llmopt.step import RunOptions
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


def planned(scratch: Path, model: Path, out: Path, verb: str, **settings: Any) -> Plan:
    usual = {"method": "rtn", "group_size": 32} if verb == "quantize" else {}
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(scratch / "text.txt"), "sequences": 2, "length": 32},
            "evaluation": {"source": str(scratch / "held-out.txt"), "windows": 2, "length": 32},
        },
        "steps": [{"id": "step", verb: {"gate": [], **usual, **settings}}],
    }
    return planner.plan(*from_data(data), out)


def run(plan: Plan) -> Artifact:
    done = pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[-1].artifact
    agrees(plan, done)
    return done


def agrees(plan: Plan, done: Artifact) -> None:
    """Plan, headers with config, and ledger say the same of every tensor."""
    found = read_contents(done.path).tensors
    fates = {fate.name: fate for fate in plan.steps[-1].fates if fate.bytes}
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    assert found.keys() == fates.keys()
    assert found.keys() == {n for n, e in ledger.items() if e["action"] not in ("tied", "left out")}
    for name, tensor in found.items():
        fate, entry = fates[name], ledger[name]
        assert (tensor.nbytes, tensor.shape) == (fate.bytes, fate.shape), name
        assert (entry["to"], entry["action"]) == (fate.to, fate.action)
        assert (tensor.layout is None) == (fate.to is None) or done.manifest["format"] == "gguf"
        if tensor.layout is not None:
            assert entry["bits_per_weight"] == pytest.approx(
                tensor.nbytes * 8 / (tensor.shape[0] * tensor.shape[1]), abs=1e-4
            )
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
    ("name", "change", "message"),
    [
        ("self_attn.v_proj", {"to": "int8 g32 sym"}, "is int4 g32 sym, not int8 g32 sym"),
        ("self_attn.v_proj", {"to": None}, "is int4 g32 sym, not plain"),
        ("self_attn.v_proj", {"shape": [32, 65]}, "has the shape"),
        ("self_attn.v_proj", {"action": "left out"}, "nothing is said of it"),
        ("input_layernorm", {"name": "model.more.weight"}, "nothing is said of it"),
    ],
)
def test_what_is_written_otherwise_than_said_is_not_published(
    name: str, change: dict[str, Any], message: str, scratch: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage = importlib.import_module("llmopt.verbs.quantize.run")
    honest = stage._ledger

    def lying(*arguments: Any) -> list[LedgerEntry]:
        ledger = honest(*arguments)
        wanted = f"{name}.weight"
        return [e.model_copy(update=change if wanted in e.name else {}) for e in ledger]

    monkeypatch.setattr(stage, "_ledger", lying)
    plan = planned(scratch, scratch / "model", tmp_path / "out", "quantize", format="gptq")
    with pytest.raises(LlmoptError, match=message):
        pipeline.run(plan, RunOptions("cpu"), Log())
    assert not (tmp_path / "out" / "step").exists()


def test_a_plain_tensor_of_another_size_is_found(scratch: Path, tmp_path: Path) -> None:
    plan = planned(scratch, scratch / "model", tmp_path / "out", "quantize", format="gptq")
    done = run(plan)
    ledger = [LedgerEntry(**entry) for entry in done.manifest["ledger"]]
    fates = [
        pipeline.replace(fate, bytes=fate.bytes + 2 * (fate.to is None))
        for fate in plan.steps[-1].fates
    ]
    with pytest.raises(LlmoptError, match=r"embed_tokens.weight takes [\d,]+ bytes, not"):
        written.checked(done.path, ledger, fates, "gptq")
