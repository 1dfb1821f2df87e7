"""Every family through every method, from a folder to a judged artifact."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.torch import load
from llmopt.specs import METHODS
from llmopt.specs.families import FAMILIES
from tests import models
from tests.verbs.conftest import difference, quantized

FAMILY_IDS = list(models.FAMILY_SETTINGS)
EXPERT_IDS = [family for family in FAMILY_IDS if FAMILIES[family].experts]


def decoded_by_transformers(model: Path, artifact: Path, folder: Path) -> torch.nn.Module:
    """transformers' model of the original with the artifact's weights, decoded, in it."""
    stored = Checkpoint.open(artifact)
    shutil.copytree(model, folder)
    # what a transform folded into the op before is stored plain
    tensors = load_file(model / "model.safetensors")
    tensors |= {name: stored.read(name) for name in stored.stored if name in tensors}
    for module in stored.layers:
        weight = stored.weight(module)
        tensors[f"{module}.weight"] = (weight.T if stored.family.conv1d else weight).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=stored.family.attention
    )
    return loaded.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILY_IDS)
def test_every_family_goes_end_to_end(family: str, method: str, make: Any, tmp_path: Path) -> None:
    model = make(family)
    done = quantized(tmp_path, model, method=method, grid="int8", gate=["kl.mean < 1000"])
    assert math.isfinite(done.manifest["gate"]["evidence"]["metrics"]["kl.mean"]["value"])
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    linears = {
        f"{name}.weight"
        for block in range(2)
        for names in Checkpoint.open(model).naming.linears(block)
        for name in names
    }
    assert {name for name, e in ledger.items() if "quantized" in e["actions"]} == linears
    assert all(ledger[name]["error"] < 0.02 for name in linears)
    truth = decoded_by_transformers(model, done.path, tmp_path / "decoded")
    with torch.no_grad():
        expected = truth(models.tokens()).logits
    found = load(done.path, dtype="float32").logits(models.tokens())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_codes_are_close_to_the_weights_and_the_logits_to_the_models(
    make: Any, tmp_path: Path
) -> None:
    """Unrelated models of this kind differ by more than 1."""
    model = make("llama")
    assert 0 < difference(model, quantized(tmp_path, model, grid="int8").path) < 0.1


@pytest.mark.parametrize("family", EXPERT_IDS)
def test_routers_are_kept_and_cold_experts_named(family: str, make: Any, tmp_path: Path) -> None:
    model = make(family, num_experts=8, num_local_experts=8)
    done = quantized(tmp_path, model, grid="int4")
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    naming = Checkpoint.open(model).naming
    for router in naming.routers(1):
        assert ledger[f"{router}.weight"]["why"] == "routes tokens to experts"
    cold = [entry for entry in ledger.values() if entry.get("cold")]
    warm = [e for n, e in ledger.items() if naming.pool_of(n) and e not in cold]
    assert cold
    assert all(entry["tokens"] < entry["shape"][1] for entry in cold)
    assert all(entry["tokens"] >= entry["shape"][1] for entry in warm)


def fuse(model: Path, family: str) -> None:
    """Store the experts as transformers has them in memory: a tensor for all of a block's."""
    stored = models.build(family).state_dict()
    assert any(tensor.ndim == 3 for tensor in stored.values())
    tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", EXPERT_IDS)
def test_fused_experts_give_the_same_artifact(family: str, make: Any, tmp_path: Path) -> None:
    model, skip = make(family), [{"match": "*.experts.1.*", "skip": True}]
    first = quantized(tmp_path, model, grid="int4", overrides=skip)
    separate = load_file(first.path / "model.safetensors")
    logits = load(model, dtype="float32").logits(models.tokens())
    shutil.rmtree(first.path)
    fuse(model, family)
    assert torch.equal(load(model, dtype="float32").logits(models.tokens()), logits)
    second = quantized(tmp_path, model, grid="int4", overrides=skip)
    found = load_file(second.path / "model.safetensors")
    assert found.keys() == separate.keys()
    assert all(torch.equal(found[name], separate[name]) for name in found)
    entries = [{e["name"]: e for e in each.manifest["ledger"]} for each in (first, second)]
    assert entries[0] == entries[1]


def test_what_is_left_alone_is_said_to_engines(make: Any, tmp_path: Path) -> None:
    done = quantized(tmp_path, make("qwen2_moe"), method="rtn", grid="int4")
    config = json.loads((done.path / "config.json").read_text())["quantization_config"]
    left = " ".join(config["dynamic"])
    assert "shared_expert_gate" in left
