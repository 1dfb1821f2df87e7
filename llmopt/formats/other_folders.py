"""Folders that are no models of transformers, by what they are. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from llmopt.errors import RequestError

#: files that only such a folder has -> what it is, and what makes a model of it
_KINDS: tuple[tuple[str, str, str | None], ...] = (
    ("model_index.json", "a diffusers pipeline, not a language model", None),
    ("modules.json", "a sentence-transformers model without a language model's weights", None),
    ("consolidated*", "weights in the layout of Meta or Mistral",
     "convert them first, with transformers' convert_llama_weights_to_hf.py or its like"),
    ("weights*.npz", "weights for MLX", "use the model that they were made from"),
    ("*.onnx", "an ONNX model", "use the model that it was exported from"),
    ("onnx/*.onnx", "an ONNX model", "use the model that it was exported from"),
    ("*.ckpt*", "a checkpoint of another framework", "export it with transformers first"),
    ("*.h5", "weights for TensorFlow",
     "load them in transformers 4 with from_tf=True, and save_pretrained"),
    ("*.msgpack", "weights for Flax",
     "load them in transformers 4 with from_flax=True, and save_pretrained"),
    ("latest", "a training checkpoint of DeepSpeed", "run its zero_to_fp32.py first"),
    ("optimizer.*", "a training checkpoint without a whole model",
     "save the model with save_pretrained"),
    ("trainer_state.json", "a training checkpoint without a whole model",
     "save the model with save_pretrained"),
    ("tokenizer*", "a tokenizer without a model", None),
)  # fmt: skip


def check_adapter(folder: Path) -> None:
    """RequestError where a folder holds an adapter, alone or beside a model that it changes."""
    config = folder / "adapter_config.json"
    if not config.is_file() and not any(folder.glob("adapter_model.*")):
        return
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        said = {}
    said = said if isinstance(said, dict) else {}
    base, kind = said.get("base_model_name_or_path"), str(said.get("peft_type") or "").lower()
    kind = "LoRA" if kind in ("", "lora") else kind
    of = base if isinstance(base, str) and base.isprintable() and base else None
    raise RequestError(
        f"{folder} is a {kind} adapter of {of or 'a model that it does not name'}, "
        "which has to be merged first",
        hint=f"with peft: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("
        f'"{of or "BASE"}"), "{folder}").merge_and_unload().save_pretrained("merged"), '
        "and copy the tokenizer there",
    )


def not_a_model(folder: Path, lacks: str) -> RequestError:
    """What is wrong with a folder that lacks its config or its weights: what it is instead."""
    for pattern, what, hint in _KINDS:
        found = sorted(path.name for path in folder.glob(pattern) if path.is_file())
        if found:
            return RequestError(f"{folder} holds {what} ({found[0]}): it has no {lacks}", hint=hint)
    if not any(folder.iterdir()):
        return RequestError(f"{folder} is empty")
    return RequestError(f"{folder} is not a model: it has no {lacks}")
