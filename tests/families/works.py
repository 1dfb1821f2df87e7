"""What is tried with a tiny model of a type: how far logits are from what they must be.

Distances are the largest difference, over the spread of the logits.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llmopt import pipeline, planner
from llmopt.blockwalk import Sink, walk
from llmopt.discovery.shrink import tiny_config, tiny_model
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.quantization import read_contents
from llmopt.formats.shards import ShardWriter
from llmopt.formats.stacks import whole
from llmopt.grids.base import GridOptions
from llmopt.recipe import from_data
from llmopt.runtimes.torch import load
from llmopt.step import RunOptions
from llmopt.verbs.quantize.transform import Awq
from llmopt.verbs.shared.changes import in_linears, linear_names
from scripts.tiny_models import config_of, own_of
from tests.test_pipeline import Log

TEXT = "The quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. "
#: from one token for a character
_FIRST = 3


def tokens() -> Tensor:
    """int64 [3, 16], of no special token."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(_FIRST, 98, (3, 16), generator=generator)


def save(model_type: str, folder: Path) -> None:
    """A tiny model with a tokenizer of one token a character, and a text beside them."""
    config = tiny_config(config_of(model_type), own_of(model_type))
    model: Any = tiny_model(config, dtype=torch.float32, whole=True)
    model.save_pretrained(folder)
    vocabulary = {chr(code): code - 32 + _FIRST for code in range(32, 127)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder.parent / "text.txt").write_text(TEXT * 40)


def _run(model: Path, out: Path, step: dict[str, Any]) -> Path:
    data = {
        "version": 1,
        "model": str(model),
        "data": {
            "calibration": {
                "source": str(model.parent / "text.txt"), "sequences": 4, "length": 32
            }
        },
        "steps": [{"id": "s", **step}],
    }  # fmt: skip
    plan = planner.plan(*from_data(data), out)
    return pipeline.run(plan, RunOptions("cpu", overwrite=True), Log()).results[0].artifact.path


def stock(folder: Path) -> Tensor:
    """The logits of the checkpoint as transformers loads it."""
    config = AutoConfig.from_pretrained(folder)
    several = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader = AutoModelForImageTextToText if several else AutoModelForCausalLM
    model, told = loader.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    lost = {key: told[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys")}
    assert not any(lost.values()), lost
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=tokens(), use_cache=False).logits
    return found


def distance(one: Tensor, other: Tensor) -> float:
    """See above."""
    return float((one - other).abs().max() / other.std())


def _decoded(quantized: Path, out: Path) -> float:
    """Our logits of an artifact against transformers' of its decoded weights."""
    plain = _run(quantized, out, {"convert": {"to": "hf", "dtype": "float32"}})
    return distance(load(quantized, dtype="float32").logits(tokens()), stock(plain))


def loads(model: Path) -> float:
    """The model itself, in our runtime and in transformers."""
    return distance(load(model, dtype="float32").logits(tokens()), stock(model))


def rtn(model: Path, out: Path) -> float:
    """Rounded to int8 in compressed-tensors."""
    step = {
        "method": "rtn", "grid": "int8", "format": "compressed-tensors", "group_size": 32,
        "gate": [], "overrides": _skipping(_ungrouped(model)),
    }  # fmt: skip
    return _decoded(_run(model, out / "rtn", {"quantize": step}), out / "rtn-plain")


def gptq(model: Path, out: Path) -> float:
    """int4 by error feedback, in gptq."""
    step = {
        "method": "gptq", "grid": "int4", "format": "gptq", "group_size": 32, "gate": [],
        "overrides": _skipping(unpackable(model)),
    }  # fmt: skip
    return _decoded(_run(model, out / "gptq", {"quantize": step}), out / "gptq-plain")


def _skipping(linears: list[str]) -> list[dict[str, Any]]:
    return [{"match": name, "skip": True} for name in linears]


def _ungrouped(model: Path) -> list[str]:
    """Linears whose inputs are in no groups of 32, or outputs in none of 8."""
    checkpoint = Checkpoint.open(model)
    shapes = {name: checkpoint.weight(name).shape for name in _linears(checkpoint)}
    return [name for name, (rows, cols) in shapes.items() if cols % 32 or rows % 8]


def unpackable(model: Path) -> list[str]:
    """Linears whose sizes gptq cannot pack: real models have them in multiples of 32."""
    checkpoint = Checkpoint.open(model)
    shapes = {name: checkpoint.stored[f"{name}.weight"].shape for name in _linears(checkpoint)}
    return [name for name, shape in shapes.items() if any(size % 32 for size in shape)]


def _linears(checkpoint: Checkpoint) -> list[str]:
    return sorted(linear_names(checkpoint.naming, head=False))


def awq(model: Path, out: Path) -> float:
    """Scales folded as for int4, nothing rounded: the logits of the model; infinite if none is."""
    checkpoint = Checkpoint.open(model)
    options = GridOptions(grid="int4", bits=4, group_size=32)
    writer = ShardWriter(out / "awq-parts")
    text = torch.randint(_FIRST, 98, (4, 32), generator=torch.Generator().manual_seed(2))
    skipped = set(_ungrouped(model))
    scales = Awq(lambda name: None if name in skipped else options)
    records = walk(checkpoint, text, [scales], Sink(writer), out / "awq-walk")
    if not any("into" in record for record in records.values()):
        return math.inf
    shutil.copytree(model, out / "awq")
    for path in (out / "awq").glob("*.safetensors*"):
        path.unlink()
    writer.finalize(out / "awq", stacks=whole(checkpoint.naming))
    return distance(stock(out / "awq"), stock(model))


def share(model: Path) -> tuple[float, str]:
    """Of the weights of a model's blocks, how many are in linears, and what the others are."""
    found, others = in_linears(read_contents(model))
    return found, ", ".join(others)
