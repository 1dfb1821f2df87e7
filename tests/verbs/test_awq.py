"""AWQ through the pipeline: the function is kept, and outliers lose their harm."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmopt.artifact import open_artifact
from llmopt.blockwalk import LiveBlock, Sink, walk
from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.headers import WEIGHTS
from llmopt.formats.shards import ShardWriter
from llmopt.grids.base import GridOptions
from llmopt.runtimes.torch import load
from llmopt.verbs.quantize.transform import Awq
from tests import models
from tests.verbs.conftest import HELD_OUT, TEXT, difference, quantized

TOKENS = torch.arange(4 * 48).view(4, 48) % 60


@pytest.mark.parametrize("family", models.FAMILY_SETTINGS)
def test_folding_leaves_the_function_as_it_is(family: str, tmp_path: Path) -> None:
    """In float32: relative change of the logits below 1e-4, for every family with a fold."""
    models.save(tmp_path / "model", family)
    checkpoint = Checkpoint.open(tmp_path / "model")
    options = GridOptions(grid="int3", bits=3, group_size=-1, symmetric=False)
    changed: list[str] = []

    class Watched(Awq):
        def apply(self, block: LiveBlock) -> None:
            changed.extend(pair.source for pair in block.pairs())
            super().apply(block)

    writer = ShardWriter(tmp_path / "parts")
    records = walk(
        checkpoint, TOKENS, [Watched(lambda _: options)], Sink(writer), tmp_path / "state"
    )
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
        measured = made.manifest["gate"]["evidence"]["metrics"]
        assert ("weights.gain" in measured) is expected


def test_what_is_skipped_takes_no_scales_where_it_came_quantized(make: Any, tmp_path: Path) -> None:
    """It stays what it is, to the bit, though scales of the linear after it could go into it."""
    model = make("qwen3", num_key_value_heads=4)
    source = quantized(tmp_path, model, method="rtn", grid="int8").path.rename(tmp_path / "int8")
    done = quantized(
        tmp_path, source, method="rtn", transform="awq",
        overrides=[{"match": "*.v_proj", "skip": True}],
    )  # fmt: skip
    before, stored = Checkpoint.open(source), Checkpoint.open(done.path)
    ledger = {entry["name"]: entry for entry in done.manifest["ledger"]}
    folded = {name for name, entry in ledger.items() if entry["actions"] == ["folded"]}
    assert "model.layers.0.post_attention_layernorm.weight" in folded
    name = "model.layers.0.self_attn.v_proj"
    assert stored.layers[name] == before.layers[name]
    assert torch.equal(stored.read_layer(name).codes, before.read_layer(name).codes)
    assert torch.equal(stored.weight(name), before.weight(name))
    entry = ledger[f"{name}.weight"]
    assert (entry["actions"], entry["to"]) == (["kept"], "int8 g32 sym")
    assert entry["bytes"] > math.prod(entry["shape"])
    assert difference(model, done.path) < 1.5


def test_scales_that_overflow_what_they_are_folded_into_are_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("qwen3", num_hidden_layers=1, dtype="float16")
    tensors = {name: value.half() for name, value in load_file(model / WEIGHTS).items()}
    tensors["model.layers.0.input_layernorm.weight"][:] = 30000
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    monkeypatch.setattr(
        "llmopt.verbs.quantize.transform.search_scale",
        lambda readers: torch.full((readers[0].weight.shape[1],), 0.25),
    )
    message = "model.layers.0.input_layernorm.weight gets values outside float16"
    with pytest.raises(RequestError, match=message):
        quantized(tmp_path, model, method="rtn", transform="awq")
    assert not (tmp_path / "out" / "q").exists()
