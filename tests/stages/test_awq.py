"""AWQ through the pipeline: the function is kept, and outliers lose their harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmopt.artifact import open_artifact
from llmopt.blockwalk import Sink, walk
from llmopt.blockwalk.block import Block
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import ShardWriter
from llmopt.grids.base import GridOptions
from llmopt.runtimes.torch import load
from llmopt.stages.transform import Awq
from tests import models
from tests.stages.conftest import HELD_OUT, TEXT, difference, quantized

TOKENS = torch.arange(4 * 48).view(4, 48) % 60


@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
def test_folding_leaves_the_function_as_it_is(family: str, tmp_path: Path) -> None:
    """In float32: relative change of the logits below 1e-4, for every family with a fold."""
    models.save(tmp_path / "model", family)
    checkpoint = Checkpoint.open(tmp_path / "model")
    options = GridOptions(grid="int3", bits=3, group_size=-1, symmetric=False)
    changed: list[str] = []

    class Watched(Awq):
        def apply(self, block: Block) -> None:
            changed.extend(pair.source for pair in block.pairs())
            super().apply(block)

    writer = ShardWriter(tmp_path / "parts")
    records = walk(
        checkpoint, TOKENS, [], Sink(writer), tmp_path / "state",
        transforms=[Watched(lambda _: options)],
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    writer.finalize(out)
    (out / "config.json").write_text(json.dumps(checkpoint.config))
    assert changed
    assert any(record.get("into") for record in records.values())
    before, after = (load(f, dtype="float32").logits(TOKENS) for f in (tmp_path / "model", out))
    assert float((after - before).norm() / before.norm()) < 1e-4


def test_codes_are_not_held_to_weights_that_scales_have_changed(tmp_path: Path) -> None:
    models.save_with_bytes(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text(TEXT * 40)
    (tmp_path / "held-out.txt").write_text(HELD_OUT * 20)
    for method, expected in (("rtn", True), ("awq", False)):
        made = quantized(tmp_path, tmp_path / "model", method=method, gate=["kl.mean < 100"])
        made = open_artifact("q", made.path)  # the gate has written its verdict since
        assert ("weights" in made.manifest["gate"]["evidence"]) is expected


def test_what_scales_are_folded_into_is_described_as_it_is_written(
    make: Any, tmp_path: Path
) -> None:
    """A linear that came quantized, is skipped, and takes the scales of the one after it."""
    model = make("qwen3", num_key_value_heads=4)
    source = quantized(tmp_path, model, method="rtn", grid="int8").path.rename(tmp_path / "int8")
    done = quantized(
        tmp_path, source, method="rtn", transform="awq",
        overrides=[{"match": "*.v_proj", "skip": True}],
    )  # fmt: skip
    stored = Checkpoint.open(done.path)
    folded = {e["name"] for e in done.manifest["ledger"] if e["action"] == "folded"}
    name = "model.layers.0.self_attn.v_proj"
    assert f"{name}.weight" in folded
    assert name not in stored.layers
    assert f"{name}.weight" in stored.stored
    assert stored.quantization is not None
    assert stored.quantization.layer(name) is None
    assert difference(model, done.path) < 1.5
