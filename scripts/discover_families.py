"""Writes llmopt/specs/families.json: what a run of a tiny model of each type shows of it.

    python scripts/discover_families.py [TYPE...]

A type whose structure depends on its config is run with several (`_VARIANTS`), and what they do not
agree on is taken apart. What cannot be walked goes into the same file, with its reason. With types,
the others stay as they are.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from llmopt.discovery.families import discover
from llmopt.errors import LlmoptError
from llmopt.specs import families
from scripts.tiny_models import config_of, own_of, types

_PATH = Path(families.__file__).with_name("families.json")
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


def discovered(model_type: str) -> dict[str, Any]:
    """What is known of a type, by the types that checkpoints of it say."""
    variants = _VARIANTS.get(model_type, ())
    return discover(config_of(model_type), own_of(model_type), variants)


#: what keeps types from being walked, as those who looked say it
_OTHERS = {
    "blt": "it cuts bytes into patches by a model of its own",
    "cpmant": "it puts a prompt of its own before the text",
    "deepseek_v4": "a table that its checkpoints call otherwise chooses experts at first",
    "emu3": "no tiny model of its image parts can be made",
    "gemma3n": "ImportError: its vision tower needs the packages timm and pillow",
    "gemma3n_text": "four streams of hidden states flow through its blocks side by side",
    "gemma4_assistant": "it takes keys and values from another model",
    "gemma4_unified_assistant": "it takes keys and values from another model",
    "hrm_text": "two stacks of blocks run several times each",
    "inkling_text": "its shared experts lie in a tensor of their own",
    "inkling2_text": "its checkpoints call the blocks in a way that is not found",
    "longcat_flash": "it counts experts that do nothing among its experts",
    "mllama": "blocks that look at pictures lie between those of text",
    "moss_transcribe_diarize": "it takes sound",
    "musicgen": "transformers does not make it of its own config",
    "musicgen_melody": "transformers does not make it of its own config",
    "prophetnet": "its decoder's words belong to another part",
    "reformer": "its layers are reversible: two streams flow through them",
    "rwkv": "its modules take the weights of linears and multiply by themselves",
    "xlm": "its layers are no blocks, but in lists beside each other",
    "xlnet": "its hidden states have the sequence before the batch",
    "zamba": "its blocks share one transformer",
    "zamba2": "its blocks share one transformer",
}


def _in_order() -> list[str]:
    """All types, text models before those that have one as a part."""

    def has_part(model_type: str) -> bool:
        try:
            return "text_config" in config_of(model_type)
        except Exception:  # a config that cannot be made: the run says so
            return True

    return sorted(types(), key=lambda model_type: (has_part(model_type), model_type))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--out", type=Path, default=_PATH)
    arguments = parser.parse_args()
    data: dict[str, Any] = {"families": {}, "others": {}}
    if arguments.types and arguments.out.is_file():
        data = json.loads(arguments.out.read_text("utf-8"))
    for model_type in arguments.types or _in_order():
        start = time.perf_counter()
        for each in data.values():
            each.pop(model_type, None)
        try:
            if model_type in _OTHERS:
                raise LlmoptError(_OTHERS[model_type])
            data["families"] |= discovered(model_type)
            said = "OK"
        except LlmoptError as error:
            said = data["others"][model_type] = error.message
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            data["others"][model_type] = said
        print(f"{model_type}: {said}, {time.perf_counter() - start:.1f} s", flush=True)
    data = {part: dict(sorted(known.items())) for part, known in data.items()}
    arguments.out.write_text(json.dumps(data, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(len(data["families"]), "of", len(types()))


if __name__ == "__main__":
    main()
