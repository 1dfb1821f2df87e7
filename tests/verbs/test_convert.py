"""Conversions between all formats: the table of what is exact, and reported errors elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmopt import pipeline, planner
from llmopt.artifact import Artifact
from llmopt.errors import RecipeError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.recipe import from_data
from llmopt.runtimes.torch import load
from llmopt.step import RunOptions
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import HELD_OUT, TEXT

RTN = {"method": "rtn"}
CT = {**RTN, "format": "compressed-tensors"}
#: source -> the quantize settings that make it
SOURCES: dict[str, dict[str, Any]] = {
    "gptq int2 g32": {**RTN, "format": "gptq", "grid": "int2", "group_size": 32},
    "gptq int3 asym": {**RTN, "format": "gptq", "grid": "int3", "symmetric": False},
    "gptq int4": {**RTN, "format": "gptq"},
    "gptq int4 row": {**RTN, "format": "gptq", "group_size": -1},
    "gptq int8 g64": {**RTN, "format": "gptq", "grid": "int8", "group_size": 64},
    "gptq act-order": {"format": "gptq", "act_order": "full", "group_size": 32},
    "gptq mixed": {
        **RTN, "format": "gptq", "overrides": [
            {"match": "*.down_proj", "grid": "int8", "group_size": 32},
            {"match": "*.o_proj", "skip": True},
        ],
    },
    "gptq head": {**RTN, "format": "gptq", "head": True},
    "gptq_v2 zero 0": {**RTN, "format": "gptq_v2", "symmetric": False, "group_size": 64},
    "awq": {**RTN, "format": "awq"},
    "awq asym g32": {**RTN, "format": "awq", "symmetric": False, "group_size": 32},
    "ct int4 asym g16": {**CT, "symmetric": False, "group_size": 16},
    "ct int8 row": {**CT, "grid": "int8", "group_size": -1},
    "ct w8a8": {**CT, "grid": "int8", "group_size": -1, "activations": "int8"},
    "ct fp8": {**CT, "grid": "fp8", "group_size": -1, "activations": "fp8"},
    "nf4": {**RTN, "format": "bitsandbytes-nf4", "grid": "nf4", "group_size": 64},
}  # fmt: skip
TARGETS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "hf")
#: (source, target) -> the linears that the target cannot hold as they are; "": none of them
INEXACT = {
    ("gptq int8 g64", "awq"): "*",
    ("gptq act-order", "awq"): "*",
    ("gptq mixed", "awq"): "down_proj",
    ("ct int4 asym g16", "awq"): "*",
    ("ct int8 row", "awq"): "*",
    **{("ct w8a8", target): "*" for target in ("gptq", "gptq_v2", "awq")},
    **{(name, t): "*" for name in ("ct fp8", "nf4") for t in ("gptq", "gptq_v2", "awq")},
    ("nf4", "compressed-tensors"): "*",
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    models.save_with_tokenizer(
        folder / "model", "llama", hidden_size=128, intermediate_size=256, num_hidden_layers=1,
        head_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    # where no weight is negative an asymmetric zero point is 0
    up = "model.layers.0.mlp.up_proj.weight"
    tensors[up] = tensors[up].abs()
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "text.txt").write_text(TEXT * 40)
    (folder / "held-out.txt").write_text(HELD_OUT * 20)
    return folder


def step(scratch: Path, model: Path, out: Path, verb: str, **settings: Any) -> Artifact:
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(scratch / "text.txt"), "sequences": 4, "length": 48},
            "evaluation": {"source": str(scratch / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": [{"id": "step", verb: {"gate": [], **settings}}],
    }
    plan = planner.plan(*from_data(data), out)
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[-1].artifact


def source(scratch: Path, name: str) -> Path:
    out = scratch / name.replace(" ", "-")
    if not out.exists():
        step(scratch, scratch / "model", out, "quantize", **SOURCES[name])
    return out


def convert(scratch: Path, model: Path, out: Path, **settings: Any) -> Artifact:
    return step(scratch, model, out, "convert", **settings)


def inexact(name: str, target: str, module: str) -> bool:
    wanted = INEXACT.get((name, target), "")
    return wanted == "*" or bool(wanted and wanted in module)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_pair(name: str, target: str, scratch: Path, tmp_path: Path) -> None:
    before = Checkpoint.open(model := source(scratch, name))
    exact = not any(inexact(name, target, module) for module in before.layers)
    if not exact:
        with pytest.raises((RecipeError, RequestError), match="exact"):
            convert(scratch, model, tmp_path / "out", to=target, exact=True)
        assert not list(tmp_path.iterdir())
    done = convert(scratch, model, tmp_path / "out", to=target, exact=exact)
    after = Checkpoint.open(done.path)
    ledger = {
        entry["name"].removesuffix(".weight"): entry
        for entry in done.manifest["ledger"]
        if entry["actions"] != ["tied"]
    }
    assert set(ledger) == {name.removesuffix(".weight") for name in before.names}
    for module in before.layers:
        entry, was, now = ledger[module], before.weight(module), after.weight(module)
        assert entry["exact"] is not inexact(name, target, module), (module, entry)
        error = float((now - was).norm() / was.norm())
        assert entry["error"] == pytest.approx(error, rel=1e-3, abs=1e-9)
        assert error < 0.15
        if entry["exact"]:
            assert torch.equal(now, was)
    for other in set(before.stored) - set(before.parts):
        assert torch.equal(after.read(other), before.read(other))
    found = done.manifest["evidence"]["certificate"]
    lost = [entry for entry in ledger.values() if not entry.get("exact", True)]
    assert (found["exact"], found["rounded"]) == (len(ledger) - len(lost), len(lost))
    assert found["largest_error"] == max((entry["error"] for entry in lost), default=0)


def weights_file(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("way", ["gptq_v2", "awq", "compressed-tensors"])
def test_there_and_back_is_the_same_file(way: str, scratch: Path, tmp_path: Path) -> None:
    model = source(scratch, "gptq int4")
    there = convert(scratch, model, tmp_path / "there", to=way, exact=True)
    back = convert(scratch, there.path, tmp_path / "back", to="gptq", exact=True)
    assert weights_file(back.path) == weights_file(model)
    assert (back.path / "config.json").read_text() == (model / "config.json").read_text()


def test_a_row_is_split_and_merged(scratch: Path, tmp_path: Path) -> None:
    model = source(scratch, "gptq int4 row")
    split = convert(scratch, model, tmp_path / "split", to="awq", exact=True)
    assert {layout.group_size for layout in Checkpoint.open(split.path).layers.values()} == {128}
    merged = convert(scratch, split.path, tmp_path / "merged", to="gptq", group_size=-1)
    assert merged.manifest["evidence"]["certificate"]["rounded"] == 0
    assert weights_file(merged.path) == weights_file(model)


def test_plain_weights_are_rounded_to_nearest(scratch: Path, tmp_path: Path) -> None:
    done = convert(scratch, scratch / "model", tmp_path / "out", to="awq", symmetric=False)
    same = step(scratch, scratch / "model", tmp_path / "same", "quantize", method="rtn",
                format="awq", symmetric=False, scale_search="mse")  # fmt: skip
    assert weights_file(done.path) == weights_file(same.path)
    assert done.manifest["evidence"]["certificate"]["rounded"] == 7


def test_decoded_weights_take_the_dtype_that_is_asked_for(scratch: Path, tmp_path: Path) -> None:
    model = source(scratch, "gptq int4")
    done = convert(scratch, model, tmp_path / "out", to="hf", dtype="bfloat16")
    tensors = load_file(done.path / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    config = json.loads((done.path / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert not (done.path / "quantize_config.json").exists()
    assert 0 < done.manifest["evidence"]["certificate"]["largest_error"] < 2**-8
    with pytest.raises(RecipeError, match="rounded to bfloat16"):
        convert(scratch, model, tmp_path / "exact", to="hf", dtype="bfloat16", exact=True)


def test_what_was_converted_computes_the_same(scratch: Path, tmp_path: Path) -> None:
    model, tokens = source(scratch, "gptq_v2 zero 0"), models.tokens()
    logits = load(model, dtype="float32").logits(tokens)
    for target in ("gptq", "compressed-tensors", "hf"):
        done = convert(scratch, model, tmp_path / target, to=target, exact=True)
        found = load(done.path, dtype="float32").logits(tokens)
        assert float((found - logits).norm() / logits.norm()) < 1e-5


def test_a_gate_follows_where_weights_are_rounded(scratch: Path, tmp_path: Path) -> None:
    def gates(model: Path, to: str) -> list[Any]:
        recipe = {
            "version": 1, "model": str(model), "steps": [{"id": "c", "convert": {"to": to}}],
            "data": {"evaluation": {"source": str(scratch / "held-out.txt")}},
        }  # fmt: skip
        plan = planner.plan(*from_data(recipe), tmp_path / "out")
        return [step.document()["gates"] for step in plan.steps if step.judges]

    assert gates(scratch / "model", "gptq") == [["default"]]
    assert gates(source(scratch, "gptq int4"), "awq") == []
    assert gates(source(scratch, "gptq int8 g64"), "awq") == [["default"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "gguff"}, "unknown target"),
        ({"to": "hf", "grid": "int4"}, "no such setting"),
        ({"to": "hf"}, "plain tensors already"),
        ({"to": "awq", "grid": "int8"}, "cannot hold grid int8"),
        ({"to": "awq", "group_size": 16}, "no groups of 16"),
        ({"to": "gptq", "exact": True}, "plain weights are rounded"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: dict[str, Any], message: str, scratch: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        convert(scratch, scratch / "model", tmp_path / "out", **settings)


def test_a_step_builds_on_a_conversion(scratch: Path, tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "model": str(source(scratch, "gptq int4")),
        "steps": [
            {"id": "plain", "convert": {"to": "hf"}},
            {"id": "awq", "convert": {"from": "plain", "to": "awq", "group_size": 64, "gate": []}},
        ],
    }
    plan = planner.plan(*from_data(recipe), tmp_path / "out")
    plain, awq = (
        result.artifact
        for result in pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results
    )
    assert not Checkpoint.open(plain.path).layers
    assert len(Checkpoint.open(awq.path).layers) == 7


def test_a_killed_conversion_goes_on(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmopt.verbs.convert import checkpoint as stage

    model = source(scratch, "gptq head")
    whole = convert(scratch, model, tmp_path / "whole", to="compressed-tensors")
    written = stage.Sink.write

    def killed(self: Any, part: str, results: Any) -> None:
        written(self, part, results)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage.Sink, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(scratch, model, tmp_path / "again", to="compressed-tensors")
    monkeypatch.undo()
    again = convert(scratch, model, tmp_path / "again", to="compressed-tensors")
    assert again.digest == whole.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


def foreign_fp8(source: Path, folder: Path, size: int = 64) -> Path:
    """The model as DeepSeek's tools store it: float8 values, a float32 scale for each block."""
    shutil.copytree(source, folder)
    path, tensors = folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        rows, cols = tensor.shape
        padded = nn.functional.pad(tensor, (0, -cols % size, 0, -rows % size))
        blocks = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        codes = (blocks / scale).flatten(2).flatten(0, 1)[:rows, :cols]
        tensors[name] = codes.contiguous().to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale[:, 0, :, 0].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    config["quantization_config"] = quantization | {"weight_block_size": [size, size]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_block_scaled_fp8_of_other_tools(scratch: Path, tmp_path: Path) -> None:
    model = foreign_fp8(scratch / "model", tmp_path / "fp8")
    plain = convert(scratch, model, tmp_path / "plain", to="hf", dtype="float32", exact=True)
    up = Checkpoint.open(plain.path).weight("model.layers.0.mlp.up_proj")
    original = Checkpoint.open(scratch / "model").weight("model.layers.0.mlp.up_proj")
    assert 0 < float((up - original).norm() / original.norm()) < 0.04
    found = {}
    for target, label in (("compressed-tensors", "fp8 64x64 sym"), ("gptq", "int8 g64 sym")):
        done = convert(scratch, model, tmp_path / target, to=target)
        layers = Checkpoint.open(done.path).layers.values()
        assert {layout.label for layout in layers} == {label}
        found[target] = done.manifest["evidence"]["certificate"]
    assert found["compressed-tensors"]["rounded"] == 0
    assert found["gptq"]["rounded"] == 7
    rows = convert(scratch, model, tmp_path / "rows", to="compressed-tensors", group_size=-1)
    assert labels(rows.path) == {"fp8 row sym"}
    assert rows.manifest["evidence"]["certificate"]["rounded"] == 7
    with pytest.raises(RecipeError, match="exact"):
        convert(scratch, model, tmp_path / "exact", to="gptq", exact=True)


@pytest.mark.parametrize(("inner", "size"), [(160, 128), (328, 128), (96, 32)])
def test_fp8_in_blocks_stays_in_them_to_the_bit(tmp_path: Path, inner: int, size: int) -> None:
    """Also where blocks are not full: a width below a block's, or no multiple of it."""
    models.save_with_tokenizer(
        tmp_path / "model", "qwen3", hidden_size=192, intermediate_size=inner
    )
    model = foreign_fp8(tmp_path / "model", tmp_path / "fp8", size)
    done = convert(tmp_path, model, tmp_path / "ct", to="compressed-tensors", exact=True)
    assert done.manifest["evidence"]["certificate"]["rounded"] == 0
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(done.path / "model.safetensors"),
    )
    for name in [name for name in before if name.endswith("_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        assert torch.equal(after[f"{weight}_scale"], before[name])
        assert torch.equal(after[weight].float(), before[weight].float())
    config = json.loads((done.path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "float-quantized"
    for group in config["config_groups"].values():
        assert group["weights"]["strategy"] == "block"
        assert group["weights"]["block_structure"] == [size, size]
        assert "actorder" not in group["weights"]
    # inputs are rounded in groups where they are made of whole ones
    usual = config["config_groups"][f"group_{len(config['config_groups']) - 1}"]
    assert (usual["input_activations"] is None) == (192 % size != 0)
    # and it is an input like any other
    first, second = Checkpoint.open(model), Checkpoint.open(done.path)
    plain = convert(tmp_path, done.path, tmp_path / "hf", to="hf", dtype="float32", exact=True)
    for module in first.layers:
        assert torch.equal(second.weight(module), first.weight(module))
        assert torch.equal(Checkpoint.open(plain.path).weight(module), first.weight(module))


def edited(folder: Path, **changes: Any) -> Path:
    """The folder as another tool's, its config changed."""
    (folder / "llmopt.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def labels(path: Path) -> set[str]:
    return {layout.label for layout in Checkpoint.open(path).layers.values()}


def test_the_last_group_of_a_row_may_have_fewer_inputs(tmp_path: Path) -> None:
    models.save(tmp_path / "model", hidden_size=128, intermediate_size=160, num_hidden_layers=1,
                head_dim=32)  # fmt: skip
    made = step(tmp_path, tmp_path / "model", tmp_path / "g32", "quantize", method="rtn",
                format="gptq", group_size=32, scale_search="mse")  # fmt: skip
    tensors = load_file(made.path / "model.safetensors")
    down = Checkpoint.open(made.path).read_layer("model.layers.0.mlp.down_proj")
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        tensors[name] = torch.arange(len(tensors[name]), dtype=torch.int32) // 64
        for part in ("qzeros", "scales"):
            whole = name.replace("g_idx", part)
            tensors[whole] = tensors[whole][::2].contiguous()
    save_file(tensors, made.path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((made.path / "config.json").read_text())["quantization_config"]
    ragged = edited(made.path, quantization_config=config | {"group_size": 64})
    scale = down.params.scale[:, ::2].repeat_interleave(64, 1)[:, :160]
    wanted = (down.codes.float() - 8) * scale
    for target in ("hf", "gptq_v2", "awq", "compressed-tensors"):
        done = convert(tmp_path, ragged, tmp_path / target, to=target, dtype="float32", exact=True)
        found = Checkpoint.open(done.path).weight("model.layers.0.mlp.down_proj")
        assert torch.equal(found, wanted), target


def test_what_a_budget_chose_is_what_is_converted(scratch: Path, tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "model": str(scratch / "model"),
        "data": {
            "calibration": {"source": str(scratch / "text.txt"), "sequences": 4, "length": 48},
            "evaluation": {"source": str(scratch / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": [
            {"id": "mixed", "quantize": {"format": "compressed-tensors", **RTN, "target_bpw": 5.5,
                                         "candidates": ["int4", "int8"], "gate": []}},
            {"id": "moved", "convert": {"from": "mixed", "to": "gptq", "exact": True}},
        ],
    }  # fmt: skip
    plan = planner.plan(*from_data(recipe), tmp_path / "out")
    pipeline.run(plan, RunOptions("cpu", overwrite=True), Log())
    layouts = [Checkpoint.open(tmp_path / "out" / name).layers for name in ("mixed", "moved")]
    assert {layout.grid for layout in layouts[0].values()} == {"int4", "int8"}
    assert layouts[0] == layouts[1]


def test_the_ledger_says_what_was_written(scratch: Path, tmp_path: Path) -> None:
    done = convert(scratch, source(scratch, "awq"), tmp_path / "out", to="compressed-tensors")
    ledger = [entry for entry in done.manifest["ledger"] if "quantized" in entry["actions"]]
    assert {entry["to"] for entry in ledger} == labels(done.path) == {"int4 g128 sym"}
    # scales, and 16 bytes for the shape
    rows, cols = ledger[0]["shape"]
    assert ledger[0]["bytes"] == rows * cols // 2 + rows * cols // 128 * 2 + 16


@pytest.mark.parametrize("name", ["awq asym g32", "gptq int3 asym", "nf4"])
def test_zero_points_are_rounded_away_where_there_are_none(
    name: str, scratch: Path, tmp_path: Path
) -> None:
    done = convert(scratch, source(scratch, name), tmp_path / "out", to="bitsandbytes-int8")
    assert labels(done.path) == {"int8 row sym"}
    assert 0 < done.manifest["evidence"]["certificate"]["largest_error"] < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "compressed-tensors", "grid": "fp8", "symmetric": False}, "fp8 has no zero points"),
        ({"to": "bitsandbytes-int8", "symmetric": False}, "int8 has no zero points"),
        ({"to": "gptq", "group_size": 48}, r"no linear .* groups of 48 do not divide its 64 inp"),
    ],
)
def test_a_target_without_any_linear_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    models.save(tmp_path / "model", hidden_size=64, intermediate_size=64)
    with pytest.raises(RecipeError, match=message):
        convert(tmp_path, tmp_path / "model", tmp_path / "out", **settings)


def test_one_group_size_divides_all_inputs(tmp_path: Path) -> None:
    models.save(tmp_path / "model", hidden_size=64, intermediate_size=96)
    recipe = {"version": 1, "model": str(tmp_path / "model"),
              "steps": [{"id": "c", "convert": {"to": "awq", "gate": []}}]}  # fmt: skip
    changes = planner.plan(*from_data(recipe), tmp_path / "out").steps[0].changes
    assert {change.quantized.label for change in changes if change.quantized} == {"int4 g32 sym"}
    assert sum(change.quantized is not None for change in changes) == 14


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    models.save(tmp_path / "model", "gemma3_text", tie_word_embeddings=True)
    path = tmp_path / "model" / "model.safetensors"
    moved = {name.replace("model.", "model.language_model.", 1): tensor
             for name, tensor in load_file(path).items()}  # fmt: skip
    save_file(moved, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "dtype": "float32", "text_config": config})
    )
    made = step(tmp_path, tmp_path / "model", tmp_path / "head", "quantize", method="rtn",
                format="gptq", group_size=32, head=True, scale_search="mse")  # fmt: skip
    foreign = edited(made.path, text_config=config, tie_word_embeddings=True)
    for target in ("hf", "awq", "gptq_v2"):
        done = convert(tmp_path, foreign, tmp_path / target, to=target, exact=True)
        written = json.loads((done.path / "config.json").read_text())
        assert written["tie_word_embeddings"] is False
        assert written["text_config"]["tie_word_embeddings"] is False
    again = convert(tmp_path, tmp_path / "hf", tmp_path / "again", to="gptq", group_size=32)
    assert len(Checkpoint.open(again.path).layers) == 14


def test_the_model_s_own_dtype_is_that_of_its_weights(scratch: Path, tmp_path: Path) -> None:
    shutil.copytree(source(scratch, "gptq int4"), tmp_path / "model")
    model = edited(tmp_path / "model", dtype="bfloat16")  # and has float32 tensors
    done = convert(scratch, model, tmp_path / "out", to="hf", exact=True)
    assert json.loads((done.path / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("target", ["hf", "gptq", "compressed-tensors"])
def test_what_is_not_finite_is_named(target: str, scratch: Path, tmp_path: Path) -> None:
    shutil.copytree(source(scratch, "awq"), tmp_path / "model")
    path = edited(tmp_path / "model") / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.scales"][0, 0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"up_proj\.scales holds NaN or infinite values"):
        convert(scratch, tmp_path / "model", tmp_path / "out", to=target)


def test_plans_count_a_group_index(scratch: Path, tmp_path: Path) -> None:
    model = source(scratch, "gptq act-order")

    def steps(to: str) -> Any:
        recipe = {
            "version": 1, "model": str(model), "steps": [{"id": "c", "convert": {"to": to}}],
            "data": {"evaluation": {"source": str(scratch / "held-out.txt")}},
        }  # fmt: skip
        return planner.plan(*from_data(recipe), tmp_path / "out").steps

    only = steps("compressed-tensors")
    assert len(only) == 1  # nothing is rounded
    done = convert(scratch, model, tmp_path / "ct", to="compressed-tensors", exact=True)
    contents = read_contents(done.path)
    assert {each.name: each.bytes for each in only[0].changes if each.written} == {
        name: tensor.nbytes for name, tensor in contents.tensors.items()
    }
    assert [step.verb for step in steps("awq")] == ["convert", "bench"]
