"""bitsandbytes: what we write in that package, and what it writes here.

NF4 decodes to the same weights bit for bit, and transformers computes the same logits with it.
LLM.int8() weights have no one decoded value: the package's int8 * SCB * float32(1 / 127) rounds
twice, ours once, so that a few differ in the last bit; in float64 the stored numbers give ours
exactly. Its products round activations to int8 as well, those below a threshold, which is why
logits differ by most of the percent that is allowed.

Run by `make compat`, inside the `peer-gptqmodel` environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmopt.formats.checkpoint import Checkpoint
from llmopt.runtimes.torch import load
from llmopt.sources import DEMO_MODEL
from tests.compat.test_gptq_loaders import run_script, windows
from tests.compat.test_weights_and_logits import ARTIFACTS, quantized, weights

pytestmark = pytest.mark.compat

ENVIRONMENT = "peer-gptqmodel"
NF4: dict[str, Any] = {
    "format": "bitsandbytes-nf4", "method": "rtn", "grid": "nf4", "group_size": 64
}  # fmt: skip
INT8: dict[str, Any] = {
    "format": "bitsandbytes-int8", "method": "rtn", "grid": "int8", "group_size": -1
}  # fmt: skip
SKIPS = {"overrides": [{"match": "model.layers.1.*", "skip": True}]}
STEPS: dict[str, dict[str, Any]] = {
    "bnb-nf4": {**NF4, "scale_search": "minmax"},
    "bnb-nf4-skips": {**NF4, **SKIPS, "method": "gptq", "head": True},
    "bnb-int8-skips": {**INT8, **SKIPS},
}
FOUR_BITS = ("bnb-nf4", "bnb-nf4-skips")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bitsandbytes")


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, step in STEPS.items():
        monkeypatch.setitem(ARTIFACTS, name, step)


def theirs(model: Path, *, wide: bool = True) -> dict[str, torch.Tensor]:
    return weights("bitsandbytes_weights", ENVIRONMENT, model, wide=wide)


@pytest.mark.parametrize(
    ("name", "wide"), [("bnb-nf4", True), ("bnb-nf4", False), ("bnb-nf4-skips", True)]
)
def test_bitsandbytes_decodes_our_nf4(scratch: Path, name: str, wide: bool) -> None:
    model = quantized(scratch, name)
    checkpoint, found = Checkpoint.open(model), theirs(model, wide=wide)
    assert set(found) == set(checkpoint.layers)
    for module, weight in found.items():
        assert weight.dtype == (torch.float32 if wide else torch.bfloat16)
        assert torch.equal(weight, checkpoint.weight(module).to(weight.dtype)), module


def test_bitsandbytes_decodes_our_int8_to_the_last_bit(scratch: Path) -> None:
    model = quantized(scratch, "bnb-int8-skips")
    checkpoint, found = Checkpoint.open(model), theirs(model)
    assert set(found) == set(checkpoint.layers)
    for module, weight in found.items():
        ours = checkpoint.weight(module)
        assert float((weight - ours).abs().max() / ours.abs().max()) < 2**-22
        assert float((weight != ours).float().mean()) < 0.01
        stored = {key: checkpoint.read(f"{module}.{key}").double() for key in ("weight", "SCB")}
        assert torch.equal(stored["weight"] * stored["SCB"][:, None] / 127, ours.double())


@pytest.mark.parametrize("name", STEPS)
def test_same_logits_in_transformers(scratch: Path, name: str) -> None:
    model = quantized(scratch, name)
    tokens, out = scratch / "tokens.npy", scratch / "logits.npy"
    np.save(tokens, windows().numpy())
    done = run_script(
        "bitsandbytes_logits", ENVIRONMENT,
        "--model", model, "--tokens", tokens, "--out", out, "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    found, ours = np.load(out), load(model, dtype="float32").logits(windows()).numpy()
    difference = np.linalg.norm(found - ours) / np.linalg.norm(ours)
    assert difference < (1e-5 if name in FOUR_BITS else 1e-2)
    assert (found.argmax(-1) == ours.argmax(-1)).mean() >= (0.999 if name in FOUR_BITS else 0.98)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double", "int8"])
def test_what_transformers_writes_is_read(scratch: Path, kind: str) -> None:
    model = scratch / f"by-transformers-{kind}" / "model"
    done = run_script(
        "bitsandbytes_quantize", ENVIRONMENT, "--model", DEMO_MODEL, "--out", model, "--kind", kind
    )
    assert done.returncode == 0, done.stdout[-2000:]
    checkpoint, found = Checkpoint.open(model), theirs(model)
    assert checkpoint.quantization is not None
    assert checkpoint.quantization.format == f"bitsandbytes-{kind.removesuffix('-double')}"
    assert set(found) == set(checkpoint.layers)
    for module, weight in found.items():
        ours = checkpoint.weight(module)
        if kind == "int8":
            assert float((weight - ours).abs().max() / ours.abs().max()) < 2**-22
        else:
            assert torch.equal(weight, ours), module


def test_round_to_nearest_chooses_what_bitsandbytes_chooses(scratch: Path) -> None:
    """The very bytes that transformers writes, with the extremes as scales."""
    ours = load_file(quantized(scratch, "bnb-nf4") / "model.safetensors")
    model = scratch / "by-transformers-nf4" / "model"
    if not model.exists():
        run_script(
            "bitsandbytes_quantize", ENVIRONMENT,
            "--model", DEMO_MODEL, "--out", model, "--kind", "nf4",
        )  # fmt: skip
    found = load_file(model / "model.safetensors")
    assert set(found) == set(ours)
    for name, tensor in found.items():
        if not name.endswith("quant_state.bitsandbytes__nf4"):
            assert torch.equal(ours[name], tensor), name
