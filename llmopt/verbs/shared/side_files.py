"""The files of a checkpoint beside its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.engine_names import apart
from llmopt.formats.quantization import QUANTIZE_CONFIG
from llmopt.formats.side_files import CODE, copy_files
from llmopt.model.change import Change, ConfigChange, configured
from llmopt.pretrained import has_tokenizer
from llmopt.specs import FORMATS
from llmopt.specs.families import Naming
from llmopt.verbs.shared.changes import linear_names, unquantized
from llmopt.verbs.shared.config import AUTO_MAP, QUANTIZATION, layers


def copy_side_files(checkpoint: Checkpoint, folder: Path) -> dict[str, object]:
    """Tokenizer, licence and whatever else came with the model, byte for byte.

    Gives what a manifest says of those that stay behind, and why, and whether there is no
    tokenizer among them; nothing where there is nothing to say.
    """
    copy_files(checkpoint.folder, checkpoint.side_files.carried, folder)
    left_out = dict(checkpoint.side_files.left_out)
    if AUTO_MAP in checkpoint.config:
        left_out[f"{AUTO_MAP} in config.json"] = CODE
    said: dict[str, object] = {"left_out": left_out} if left_out else {}
    return said if has_tokenizer(checkpoint.folder) else said | {"no_tokenizer": True}


def write_config(
    config: Mapping[str, JsonValue],
    folder: Path,
    changes: Iterable[ConfigChange],
    *,
    format_id: str | None = None,
) -> None:
    """config.json with these changes, and what else the readers of a format want to know."""
    written = configured(config, changes)
    if format_id in FORMATS and FORMATS[format_id].repeats_config:
        _write(folder / QUANTIZE_CONFIG, written[QUANTIZATION])
    _write(folder / "config.json", written)


def loading(naming: Naming, changes: Iterable[Change]) -> dict[str, object]:
    """What decides who can load the artifact: what `specs.loaders` asks of it."""
    changes = list(changes)
    said, plain = layers(changes), unquantized(changes, naming)
    inside = linear_names(naming, head=False)
    layouts = sorted(set(said.values()), key=lambda layout: (layout.label, layout.desc_act))
    return {
        "family": naming.family.id,
        "layouts": [asdict(layout) for layout in layouts],
        "head": naming.head in said,
        "plain": any(name in inside for name in plain),
        "apart": sorted(apart(naming, said, plain)),
    }


def _write(path: Path, document: JsonValue) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
