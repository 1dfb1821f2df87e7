"""Checkpoints that are not what they should be: refused in one sentence, or carried over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.artifact import folder_of
from llmopt.formats.headers import read_headers
from tests import models
from tests.cli.conftest import Llmopt

Tensors = dict[str, torch.Tensor]
#: changes a model's tensors, and its config, in place
Tamper = Callable[[Tensors, dict[str, Any]], None]

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
EXPERT = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"
QUANTIZE = ("quantize", "model", "-o", "out", "--group-size", 32, "--device", "cpu")


def tampered(folder: Path, family: str, tamper: Tamper) -> Tensors:
    """Write such a model into `folder`; its tensors."""
    models.save_with_tokenizer(folder, family)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    tamper(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def removed(*names: str) -> Tamper:
    return lambda tensors, _: [tensors.pop(name) for name in names] and None


def renamed(old: str, new: str) -> Tamper:
    return lambda tensors, _: tensors.update({new: tensors.pop(old)})


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Tamper:
    return lambda tensors, _: tensors.update({name: change(tensors[name]).contiguous()})


def spoiled(name: str, value: float) -> Tamper:
    def tamper(tensors: Tensors, _: dict[str, Any]) -> None:
        tensors[name].flatten()[3] = value

    return tamper


def broken_tie(tensors: Tensors, config: dict[str, Any]) -> None:
    config["tie_word_embeddings"] = True
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def another_block(tensors: Tensors, _: dict[str, Any]) -> None:
    for name, tensor in list(tensors.items()):
        if ".layers.1." in name:
            tensors[name.replace(".1.", ".2.", 1)] = tensor.clone()


def one_expert_less(tensors: Tensors, _: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".experts.3." in name]:
        del tensors[name]


def stored_twice(tensors: Tensors, _: dict[str, Any]) -> None:
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(4, 64, 96)


REFUSED: dict[str, tuple[str, Tamper, str]] = {
    "a linear missing": ("llama", removed(UP), f"no tensor {UP}"),
    "a norm missing": ("llama", removed(NORM), f"no tensor {NORM}"),
    "an untied head missing": ("qwen3", removed("lm_head.weight"), "no tensor lm_head.weight"),
    "renamed": ("llama", renamed(UP, UP.replace("up", "upp")), f"no tensor {UP}"),
    "transposed": ("llama", changed(UP, lambda w: w.T), f"{UP} has the shape [64, 96]"),
    "a norm too long": (
        "llama", changed(NORM, lambda w: torch.cat([w, w])), f"{NORM} has the shape [128]",
    ),
    "no matrix": ("llama", changed(UP, lambda w: w[None]), f"{UP}"),
    "the head is not tied": ("llama", broken_tie, "lm_head.weight holds other values"),
    "a block too many": ("llama", another_block, "says 2 blocks, the weights have 3"),
    "a whole block missing": (
        "llama",
        lambda tensors, config: config.update(num_hidden_layers=3),
        "says 3 blocks, the weights have 2",
    ),
    "an expert's tensor missing": ("mixtral", removed(EXPERT.format(2)), EXPERT.format(2)),
    "an expert missing": ("mixtral", one_expert_less, "experts.3."),
    "an expert too many": (
        "mixtral",
        lambda tensors, _: tensors.update({EXPERT.format(4): torch.zeros(96, 64)}),
        "experts.4.",
    ),
    "an expert stored twice": ("mixtral", stored_twice, "experts.0.w2.weight twice: as"),
    "integers for weights": ("llama", changed(UP, lambda w: w.int()), f"{UP} is stored as I32"),
    "not a number": ("llama", spoiled(UP, float("nan")), UP.removesuffix(".weight")),
    "not a number in a norm": ("llama", spoiled(NORM, float("nan")), f"{NORM} holds NaN"),
    "infinite embedding": (
        "llama", spoiled("model.embed_tokens.weight", float("inf")), "embed_tokens.weight holds",
    ),
    "a tensor without a place": (
        "llama",
        lambda tensors, _: tensors.update({"model.layers.0.mlp.x_proj.weight": torch.ones(2)}),
        "model.layers.0.mlp.x_proj.weight, which the model has no place for",
    ),
}  # fmt: skip


def check_refused(llmopt: Llmopt, folder: Path, says: str, *options: object) -> None:
    done = llmopt(*QUANTIZE, "--gate", "none", *options)
    assert done.code in (1, 2), done.err
    assert says in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert {path.name for path in folder.iterdir()} <= {"model", "text.txt"}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(llmopt: Llmopt, tmp_path: Path, case: str) -> None:
    family, tamper, says = REFUSED[case]
    tampered(tmp_path / "model", family, tamper)
    check_refused(llmopt, tmp_path, says, "--method", "rtn")


@pytest.mark.parametrize("case", ["a linear missing", "not a number", "an expert missing"])
def test_refused_with_calibration_too(llmopt: Llmopt, tmp_path: Path, case: str) -> None:
    family, tamper, says = REFUSED[case]
    tampered(tmp_path / "model", family, tamper)
    (tmp_path / "text.txt").write_text("How vexingly quick daft zebras jump! " * 40)
    check_refused(
        llmopt, tmp_path, says,
        "--calibration", "text.txt", "--sequences", 4, "--length", 32,
    )  # fmt: skip


def with_bias(tensors: Tensors, _: dict[str, Any]) -> None:
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.randn(64)


GROUPS = ("--group-size", 32)
TEXT = ("--calibration", "text.txt", "--sequences", 4, "--length", 32)
#: every verb that computes, and every kind of target
VERBS: dict[str, tuple[object, ...]] = {
    **{
        f"convert to {target}": ("convert", "model", "--to", target, "-o", "out.gguf")
        for target in ("gguf", "gguf:F16", "gguf:F32", "gguf:BF16", "gguf:Q8_0")
    },
    **{
        f"convert to {target}": ("convert", "model", "--to", target, "-o", "out", *GROUPS)
        for target in ("gptq", "awq", "compressed-tensors")
    },
    "imatrix": ("convert", "model", "--to", "imatrix", "-o", "out.gguf", *TEXT),
    "skipped": (*QUANTIZE, "--method", "rtn", "--gate", "none", "--skip", "*.mlp.*"),
    "nothing calibrated": (*QUANTIZE, "--method", "rtn", "--gate", "none"),
    "allocate": (*QUANTIZE, "--gate", "none", "--target-bpw", 5, *TEXT),
    "bench": ("bench", "model", "-o", "out", "--evaluation", "text.txt", "--length", 32),
    "generate": ("generate", "model", "-p", "a"),
}
PLAINEST = ("convert to gguf", "convert to gguf:F16", "nothing calibrated", "generate")
UNSOUND: dict[str, tuple[str, Tamper, str]] = {
    "missing": ("qwen3", removed(UP), f"the weights have no tensor {UP}"),
    "nan": ("qwen3", spoiled(NORM, float("nan")), f"tensor {NORM} holds NaN or infinite values"),
    "bias": ("qwen3", with_bias, "q_proj.bias, which the model has no place for"),
    "nan in a linear": ("qwen3", spoiled(UP, float("inf")), f"tensor {UP} holds NaN or infinite"),
}


@pytest.mark.parametrize(
    ("case", "verb"),
    [(case, verb) for case in UNSOUND for verb in (VERBS if "nan" in case else PLAINEST)],
)
def test_refused_by_every_verb(llmopt: Llmopt, tmp_path: Path, case: str, verb: str) -> None:
    family, tamper, says = UNSOUND[case]
    tampered(tmp_path / "model", family, tamper)
    (tmp_path / "text.txt").write_text("How vexingly quick daft zebras jump! " * 40)
    done = llmopt(*VERBS[verb])
    assert (done.code, says in " ".join(done.err.split())) == (2, True), done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]


@pytest.mark.parametrize("format_id", ["gptq", "compressed-tensors", "gguf"])
def test_quantized_sources_are_looked_at_too(
    llmopt: Llmopt, tmp_path: Path, format_id: str
) -> None:
    models.save_with_bytes(tmp_path / "plain", "qwen3")
    if format_id == "gguf":
        path = tmp_path / "model.gguf"
        assert llmopt("convert", "plain", "--to", "gguf:Q8_0", "-o", path).code == 0
        raw = bytearray(path.read_bytes())
        (header,) = (
            header
            for name, header in read_headers(folder_of(path)).tensors.items()
            if name == "model.layers.1.mlp.up_proj.ggml"
        )
        raw[header.start + 34 : header.start + 36] = b"\xff\x7f"  # the second block's scale
        (tmp_path / "other.gguf").write_bytes(raw)
        says = "up_proj.ggml holds NaN or infinite values: 1 of its 192 blocks, the first at 1"
        source = "other.gguf"
    else:
        options = ("--format", format_id, "--method", "rtn", "--gate", "none", *GROUPS)
        assert llmopt("quantize", "plain", "-o", "source", *options).code == 0
        source, path = "source", tmp_path / "source" / "model.safetensors"
        tensors = load_file(path)
        name = next(name for name in tensors if "up_proj" in name and "scale" in name)
        tensors[name].flatten()[3] = torch.inf
        save_file(tensors, path, metadata={"format": "pt"})
        says = f"tensor {name} holds NaN or infinite values: 1 of its"
    for target in ("hf", "gguf", "gguf:Q4_0"):
        done = llmopt("convert", source, "--to", target, "-o", "out")
        assert done.code == 2
        assert says in " ".join(done.err.split())
    done = llmopt("generate", source, "-p", "a")
    assert done.code == 2
    assert says in " ".join(done.err.split())
    assert not (tmp_path / "out").exists()


def sharded(folder: Path) -> dict[str, Any]:
    """Deal a model's tensors to two files with an index."""
    models.save_with_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


def test_a_tensor_in_two_shards(llmopt: Llmopt, tmp_path: Path) -> None:
    tensors = sharded(tmp_path / "model")
    second = load_file(tmp_path / "model" / "two.safetensors")
    first = load_file(tmp_path / "model" / "one.safetensors")
    other = {**first, **second} if UP in first else {**second, **first}
    assert UP in other
    target = "two.safetensors" if UP in first else "one.safetensors"
    held = second if UP in first else first
    save_file({**held, UP: tensors[UP]}, tmp_path / "model" / target)
    check_refused(llmopt, tmp_path, f"tensor {UP} is in both", "--method", "rtn")


def test_a_shard_that_is_missing(llmopt: Llmopt, tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "model" / "two.safetensors").unlink()
    check_refused(llmopt, tmp_path, "names two.safetensors, which is missing", "--method", "rtn")


def further_layer(tensors: Tensors, config: dict[str, Any]) -> None:
    """A layer that predicts a token further, as DeepSeek and GLM store it."""
    another_block(tensors, config)
    for name in ("eh_proj.weight", "enorm.weight", "shared_head.head.weight"):
        tensors[f"model.layers.2.{name}"] = torch.randn(64, 64)
    config["num_nextn_predict_layers"] = 1


def further_part(tensors: Tensors, _: dict[str, Any]) -> None:
    """The same as Qwen3-Next stores it."""
    tensors["mtp.fc.weight"] = torch.randn(64, 128)
    tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.randn(96, 64)


def another_head(tensors: Tensors, _: dict[str, Any]) -> None:
    tensors["value_head.weight"] = torch.randn(1, 64)


@pytest.mark.parametrize(
    ("tamper", "inside", "why"),
    [
        (further_layer, "model.layers.2.", "multi-token prediction"),
        (further_part, "mtp.", "multi-token prediction"),
        (another_head, "value_head.", "not part of the text model"),
    ],
)
def test_carried_over(
    llmopt: Llmopt, tmp_path: Path, tamper: Tamper, inside: str, why: str
) -> None:
    tensors = tampered(tmp_path / "model", "llama", tamper)
    (tmp_path / "text.txt").write_text("How vexingly quick daft zebras jump! " * 40)
    done = llmopt(
        *QUANTIZE, "--method", "rtn", "--gate", "kl.mean < 1000", "--evaluation", "text.txt",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    written = load_file(tmp_path / "out" / "model.safetensors")
    manifest = json.loads((tmp_path / "out" / "llmopt.json").read_text())
    ledger = {entry["name"]: entry for entry in manifest["ledger"]}
    carried = [name for name in tensors if name.startswith(inside)]
    assert carried
    for name in carried:
        assert torch.equal(written[name], tensors[name])
        assert ledger[name]["actions"] == ["kept"]
        assert why in ledger[name]["why"]
    assert "model.layers.1.mlp.up_proj.qweight" in written
