"""The files of a checkpoint beside its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.config import config_of
from llmopt.formats.engine_names import EngineNames, apart
from llmopt.formats.quantization import QUANTIZE_CONFIG
from llmopt.formats.side_files import CODE, copy_files
from llmopt.model.layout import Layout
from llmopt.pretrained import has_tokenizer
from llmopt.specs import FORMATS
from llmopt.specs.families import Naming
from llmopt.verbs.shared.changes import linear_names

#: names the code that comes with a model, which stays behind
_AUTO_MAP = "auto_map"


def copy_side_files(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Tokenizer, licence and whatever else came with the model, byte for byte.

    Gives what a manifest says of those that stay behind, and why, and whether there is no
    tokenizer among them; nothing where there is nothing to say.
    """
    copy_files(checkpoint.folder, checkpoint.side_files.carried, folder)
    left_out = dict(checkpoint.side_files.left_out)
    if _AUTO_MAP in checkpoint.config:
        left_out[f"{_AUTO_MAP} in config.json"] = CODE
    said: dict[str, Any] = {"left_out": left_out} if left_out else {}
    return said if has_tokenizer(checkpoint.folder) else said | {"no_tokenizer": True}


def write_config(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    format_id: str | None,
    layers: Mapping[str, Layout],
    unquantized: Iterable[str] = (),
    damping: float | None = None,
    true_sequential: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """config.json, and what else the format's readers want to know; format_id None is plain.

    Gives what a manifest says of it, as far as it decides who can load the artifact.

    `layers` are all quantized linears, `unquantized` the others but the head. `dtype` is that of
    the model, where it is not the source's.
    """
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in ("quantization_config", _AUTO_MAP)
    }
    plain = list(unquantized)
    changes: dict[str, Any] = {}
    if dtype is not None:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        changes[key] = str(dtype).removeprefix("torch.")
    if checkpoint.naming.head in {*layers, *checkpoint.layers}:  # it has weights of its own
        changes["tie_word_embeddings"] = False
    config |= changes
    if (inner := checkpoint.family.text_config) is not None:
        config[inner] = config[inner] | changes
    if format_id is not None:
        spec = FORMATS[format_id]
        quantization = config_of(format_id).quantization_config(
            layers,
            version=spec.version,
            unquantized=plain,
            head=checkpoint.naming.head,
            names=EngineNames(checkpoint.naming),
            damping=damping,
            true_sequential=true_sequential,
        )
        config["quantization_config"] = quantization
        if spec.repeats_config:
            _write(folder / QUANTIZE_CONFIG, quantization)
    _write(folder / "config.json", config)
    return {"loading": _loading(checkpoint.naming, layers, plain)}


def _loading(naming: Naming, layers: Mapping[str, Layout], plain: list[str]) -> dict[str, Any]:
    """What `specs.loaders` asks of an artifact."""
    inside = linear_names(naming, head=False)
    layouts = sorted(set(layers.values()), key=lambda layout: (layout.label, layout.desc_act))
    return {
        "family": naming.family.id,
        "layouts": [asdict(layout) for layout in layouts],
        "head": naming.head in layers,
        "plain": any(name in inside for name in plain),
        "apart": sorted(apart(naming, layers, plain)),
    }


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
