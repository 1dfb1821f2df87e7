"""AWQ and compressed-tensors artifacts in the packages that own these formats.

Weights: what autoawq's and compressed-tensors' own functions unpack equals what we decode bit for
bit when they are given the stored scales in float32. With the scales as stored, in float16, they
compute in float16, and give our values rounded to it once, bit for bit too.
Logits: those of our runtime in float32, to 1e-2.

Run by `make compat`, which builds the environments: `compat` has transformers 4 with
compressed-tensors 0.14.0.1, `peer-gptqmodel` transformers 5 with 0.20.0. What does not load there:

- autoawq and transformers 4 load AWQ models on CPU only with Intel's extension for PyTorch;
- compressed-tensors 0.20 dropped act-order with stored groups; 0.14 packs 3-bit codes otherwise
  than 0.20, and its model loader knows one sub-format a model, takes no int8 parameters, and
  computes with weights in float16, which puts many activations on other float8 levels.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.torch import load
from tests import models
from tests.compat.test_gptq_loaders import ROOT, run_script, windows

pytestmark = pytest.mark.compat

CT = {"format": "compressed-tensors", "method": "rtn"}
ROWS = {"group_size": -1}
#: what is quantized: name -> step
ARTIFACTS = {
    "awq": {"format": "awq", "method": "rtn"},
    "awq-asym-g32": {"format": "awq", "method": "rtn", "symmetric": False, "group_size": 32},
    "int4": CT,
    "int4-asym-g64-head": {**CT, "symmetric": False, "group_size": 64, "head": True},
    "int8-rows": {**CT, **ROWS, "grid": "int8"},
    "int8-asym-rows": {**CT, **ROWS, "grid": "int8", "symmetric": False},
    "int3-asym-g32": {**CT, "grid": "int3", "symmetric": False, "group_size": 32},
    "int2": {**CT, "grid": "int2", "group_size": 32},
    "act-order": {"format": "compressed-tensors", "act_order": "full", "group_size": 32},
    "w8a8": {**CT, **ROWS, "grid": "int8", "activations": "int8"},
    "fp8": {**CT, **ROWS, "grid": "fp8", "activations": "fp8"},
    "mixed-bits": {
        **CT,
        "overrides": [
            {"match": "*.mlp.down_proj", "grid": "int8", "group_size": -1},
            {"match": "model.layers.1.mlp.up_proj", "group_size": 64},
            {"match": "model.layers.2.self_attn.*", "skip": True},
        ],
    },
    "mixed-formats": {
        **CT,
        **ROWS,
        "grid": "int8",
        "activations": "int8",
        "overrides": [
            {"match": "*.mlp.*", "grid": "int4", "group_size": 64},
            {"match": "model.layers.0.*", "skip": True},
        ],
    },
}
#: environment -> the artifacts that its compressed-tensors cannot read
NOT_READ = {"compat": {"int3-asym-g32"}, "peer-gptqmodel": {"act-order"}}
NOT_LOADED = {
    "compat": NOT_READ["compat"] | {"mixed-formats", "w8a8", "fp8"},
    "peer-gptqmodel": {"act-order"},
}
COMPRESSED = [name for name in ARTIFACTS if not name.startswith("awq")]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compat")


def quantized(scratch: Path, name: str) -> Path:
    """The demo model, quantized through a recipe; made once per module."""
    out = scratch / name
    if not out.exists():
        recipe = {
            "version": 1,
            "model": "demo",
            "data": {"calibration": {"source": "demo", "sequences": 8, "length": 128}},
            "steps": [{"id": "q", "quantize": {**ARTIFACTS[name], "gate": []}}],
        }
        if ARTIFACTS[name].get("method") == "rtn":
            del recipe["data"]
        path = scratch / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "llmopt", "run", path, "-o", out, "--quiet"]
        subprocess.run(command, check=True)
    return out / "q"


def weights(script: str, environment: str, model: Path, *, wide: bool) -> dict[str, torch.Tensor]:
    out = model.parent / f"{environment}-{'wide' if wide else 'stored'}.safetensors"
    options = ["--wide"] if wide else []
    done = run_script(script, environment, "--model", model, "--out", out, *options)
    assert done.returncode == 0, done.stdout[-2000:]
    return load_file(out)


def same_weights(model: Path, found: dict[str, torch.Tensor], *, wide: bool) -> None:
    checkpoint = Checkpoint.open(model)
    assert set(found) == set(checkpoint.layers)
    for module, weight in found.items():
        ours = checkpoint.weight(module)
        stored = torch.float32 if wide else weight.dtype
        assert weight.dtype == stored
        assert torch.equal(weight, ours.to(stored)), module


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("name", ["awq", "awq-asym-g32"])
def test_autoawq_unpacks_our_weights(scratch: Path, name: str, wide: bool) -> None:
    model = quantized(scratch, name)
    same_weights(model, weights("autoawq_weights", "compat", model, wide=wide), wide=wide)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("environment", ["compat", "peer-gptqmodel"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_tensors_decompresses_our_weights(
    scratch: Path, name: str, environment: str, wide: bool
) -> None:
    if name in NOT_READ[environment]:
        pytest.skip(f"the compressed-tensors of {environment} does not read {name}")
    model = quantized(scratch, name)
    found = weights("compressed_tensors_weights", environment, model, wide=wide)
    same_weights(model, found, wide=wide)


def same_logits(model: Path, script: str, environment: str, dtype: str) -> None:
    tokens, out = model.parent / "tokens.npy", model.parent / f"{environment}.npy"
    np.save(tokens, windows().numpy())
    done = run_script(
        script, environment, "--model", model, "--tokens", tokens, "--out", out, "--dtype", dtype
    )
    assert done.returncode == 0, done.stdout[-2000:]
    theirs = np.load(out)
    ours = load(model, dtype="float32").logits(windows()).numpy()
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < 1e-2
    # an activation on the border between two levels goes either way
    activations = any(layout.activations for layout in Checkpoint.open(model).layers.values())
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() >= (0.98 if activations else 0.99)


@pytest.mark.parametrize("name", ["awq", "awq-asym-g32"])
def test_same_logits_in_gptqmodel(scratch: Path, name: str) -> None:
    same_logits(quantized(scratch, name), "gptqmodel_logits", "peer-gptqmodel", "float16")


@pytest.mark.parametrize("environment", ["compat", "peer-gptqmodel"])
@pytest.mark.parametrize("name", COMPRESSED)
def test_same_logits_in_transformers(scratch: Path, name: str, environment: str) -> None:
    if name in NOT_LOADED[environment]:
        pytest.skip(f"transformers in {environment} does not load {name}")
    same_logits(quantized(scratch, name), "transformers_logits", environment, "float32")


def test_a_multimodal_model_loads_in_transformers(tmp_path: Path) -> None:
    """Its tower stays plain, and the config says so under the names that transformers has."""
    models.save_with_tokenizer(tmp_path / "model")
    models.save_gemma3_with_a_tower(tmp_path / "model")
    command = [sys.executable, "-m", "llmopt", "quantize", tmp_path / "model", "-o", tmp_path / "q"]
    options = ["--format", "compressed-tensors", "--method", "rtn", "--group-size", "32"]
    subprocess.run([*command, *options, "--gate", "none", "--quiet"], check=True)
    tokens, out = tmp_path / "tokens.npy", tmp_path / "logits.npy"
    np.save(tokens, models.tokens().numpy())
    done = run_script(
        "transformers_logits", "peer-gptqmodel", "--model", tmp_path / "q", "--tokens", tokens,
        "--out", out, "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    ours = load(tmp_path / "q", dtype="float32").logits(models.tokens()).numpy()
    assert np.allclose(np.load(out), ours, atol=1e-4)


def test_what_we_wrote_is_what_was_asked_for(scratch: Path) -> None:
    layers = Checkpoint.open(quantized(scratch, "mixed-formats")).layers
    labels = {layout.label for layout in layers.values()}
    assert labels == {"int8 row sym, int8 activations", "int4 g64 sym"}
    assert ROOT.is_dir()
