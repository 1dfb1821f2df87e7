"""In which dtype every path computes, seen from the operators that torch runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from llmopt import pipeline, planner, processor
from llmopt.generation import Request, generation
from llmopt.recipe import from_data
from llmopt.step import RunOptions
from tests import models
from tests.test_pipeline import Log
from tests.verbs.conftest import HELD_OUT, TEXT

#: operators that multiply matrices; the packed kernels are not among them
PRODUCTS = {
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "convolution",
    "mkldnn_linear", "_addmm_activation", "_mkl_linear", "_fused_sdp_choice",
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable",
}  # fmt: skip
SETTINGS = {
    "gptq": {"quantize": {"group_size": 32, "head": True, "gate": ["kl.mean < 99"]}},
    "awq": {"quantize": {"group_size": 32, "format": "awq", "method": "awq", "gate": []}},
    "activations": {
        "quantize": {
            "grid": "int8", "group_size": -1, "format": "compressed-tensors",
            "activations": "int8", "gate": ["kl.mean < 99"],
        }
    },
    "budget": {
        "quantize": {"target_bpw": 4.7, "candidates": ["int4 g32", "int3 g32"], "gate": []}
    },
    "gguf": {"convert": {"to": "gguf:Q4_0", "method": "gptq", "gate": []}},
}  # fmt: skip


class Products(TorchDispatchMode):
    """Notes the dtypes of all operands of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in PRODUCTS:
            self.dtypes |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[Products]:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: False)
    with Products() as seen:
        yield seen


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint that is bfloat16 throughout."""
    folder = tmp_path / "model"
    models.save_with_bytes(folder, "llama", num_key_value_heads=4, attention_bias=False)
    file = folder / "model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"})
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"float32"', '"bfloat16"'))
    return folder


def ran(tmp_path: Path, model: Path, steps: list[dict[str, Any]]) -> Path:
    for name, text in {"seen": TEXT, "held-out": HELD_OUT}.items():
        (tmp_path / f"{name}.txt").write_text(text * 40)
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {"source": str(tmp_path / "seen.txt"), "sequences": 4, "length": 48},
            "evaluation": {"source": str(tmp_path / "held-out.txt"), "windows": 4, "length": 48},
        },
        "steps": steps,
    }
    plan = planner.plan(*from_data(data), tmp_path / "out")
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[0].artifact.path


@pytest.mark.parametrize("step", SETTINGS)
def test_steps_compute_in_float32_where_bfloat16_is_slow(
    step: str, model: Path, tmp_path: Path, products: Products
) -> None:
    ran(tmp_path, model, [{"id": "made", **SETTINGS[step]}])
    assert products.dtypes - {torch.float64} == {torch.float32}


def test_a_bench_computes_in_float32(model: Path, tmp_path: Path, products: Products) -> None:
    bench = {"id": "b", "bench": {"from": [], "speed": True, "new_tokens": 2}}
    ran(tmp_path, model, [bench])
    assert products.dtypes == {torch.float32}


@pytest.mark.parametrize("fast", [False, True])
def test_generation_computes_in_bfloat16_only_where_that_is_fast(
    fast: bool, model: Path, products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "fast_bfloat16", lambda: fast)
    request = Request(str(model), "The quick", max_new_tokens=3, device="cpu")
    with generation(request) as made:
        assert list(made.pieces())
    heavy = products.dtypes - ({torch.float32} if fast else set())  # rotary angles stay float32
    assert heavy == {torch.bfloat16 if fast else torch.float32}
