"""Writes llmopt/specs/families.json: what a run of a tiny model of each type shows of it.

    python scripts/discover_families.py [TYPE...]

A type whose structure depends on its config is run with several (`_VARIANTS`), and what they do not
agree on is taken apart. What cannot be walked goes into the same file, with its reason. With types,
the others stay as they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.discovery.check import is_walked
from llmopt.discovery.describe import described, merged
from llmopt.discovery.shrink import tiny_config, tiny_model
from llmopt.errors import LlmoptError, RequestError
from llmopt.specs import families
from scripts.tiny_models import config_of, own_of, types

_PATH = Path(families.__file__).with_name("families.json")
_OFTEN = ({"num_hidden_layers": 2},)
#: settings that change which linears there are, which share an input, or what follows on what
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "falcon": (
        {"parallel_attn": False},
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
    ),
    "gpt_neox": ({"use_parallel_residual": False},),
    "stablelm": ({"use_parallel_residual": True},),
    "opt": ({"do_layer_norm_before": False},),
    "qwen2_moe": ({"mlp_only_layers": [0]},),
    "qwen3_moe": ({"mlp_only_layers": [0]},),
    "deepseek_v2": ({"q_lora_rank": None},),
    "deepseek_v3": ({"q_lora_rank": None},),
    "minicpm3": ({"q_lora_rank": None},),
}


#: their configs cannot be made
_BROKEN = ("gemma4_assistant", "gemma4_unified_assistant")


def tokens() -> Tensor:
    """int64 [4, 16]: none special; two batches, so that what depends on tokens differs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 100, (4, 16), generator=generator)


def discovered(model_type: str) -> dict[str, Any]:
    """What is known of a type; LlmoptError where it cannot be walked."""
    config, own = config_of(model_type), own_of(model_type)
    text = next((key for key in ("text_config",) if isinstance(config.get(key), dict)), None)
    inner = config[text].get("model_type") if text else None
    if inner in types() and inner != model_type:
        found = described(
            tiny_model(tiny_config(config_of(inner), own_of(inner)), dtype=torch.float32), tokens()
        )
        whole = described(tiny_model(tiny_config(config, own), dtype=torch.float32), tokens())
        return {
            **found,
            "text_config": text,
            "text_type": inner,
            "stored_as": whole["stored_as"] or [[whole["base"], whole["head"]]],
            "renamed": found["renamed"],
        }
    found = []
    for variant in ({}, *_VARIANTS.get(model_type, ())):
        settings = {**own, **variant}
        model = tiny_model(tiny_config({**config, **variant}, settings), dtype=torch.float32)
        found.append(described(model, tokens()))
    return merged(found)


def check(model_type: str, known: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The type that checkpoints say, and what is known, with the attention that computes the type exactly; LlmoptError where none does."""
    try:
        return _checked(model_type, known, torch.float64)
    except RuntimeError:  # some models compute parts in float32, whatever they are given
        return _checked(model_type, known, torch.float32)


def _checked(
    model_type: str, known: dict[str, Any], dtype: torch.dtype
) -> tuple[str, dict[str, Any]]:
    model = tiny_model(tiny_config(config_of(model_type), own_of(model_type)), dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved_type = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        for attention in ("sdpa", "eager"):
            known = {**known, "attention": attention}
            for each in {model_type, saved_type}:
                families.remember(each, known)
            try:
                if is_walked(Path(folder), model, tokens()):
                    return saved_type, known
            except RequestError as error:
                if "attention implementation" not in error.message:
                    raise
    raise LlmoptError("walked block by block it gives other logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--out", type=Path, default=_PATH)
    arguments = parser.parse_args()
    data: dict[str, Any] = {"families": {}, "others": {}}
    if arguments.types and arguments.out.is_file():
        data = json.loads(arguments.out.read_text("utf-8"))
    # text models before those that have one as a part
    for model_type in arguments.types or sorted(
        types(), key=lambda t: ("text_config" in config_of(t) if t not in _BROKEN else True, t)
    ):
        start = time.perf_counter()
        for each in data.values():
            each.pop(model_type, None)
        try:
            saved_type, known = check(model_type, discovered(model_type))
            for each in {model_type, saved_type}:
                data["families"][each] = known
            said = "OK"
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            data["others"][model_type] = said
        print(f"{model_type}: {said}, {time.perf_counter() - start:.1f} s", flush=True)
    data = {part: dict(sorted(known.items())) for part, known in data.items()}
    arguments.out.write_text(json.dumps(data, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(len(data["families"]), "of", len(types()))


if __name__ == "__main__":
    main()
