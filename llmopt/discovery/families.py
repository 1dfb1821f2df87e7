"""From a config.json to what specs.families holds of its type."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llmopt.discovery.agreement import merged
from llmopt.discovery.check import is_walked
from llmopt.discovery.describe import described
from llmopt.discovery.shrink import tiny_config, tiny_model
from llmopt.errors import LlmoptError, RequestError
from llmopt.specs import families
from llmopt.specs.naming import layouts

#: where multimodal configs have that of the text model
_TEXT = "text_config"
#: of a tiny model: with as many for keys and values, folds into values can be seen
_HEADS = 4
#: settings by name
Settings = Mapping[str, Any]


def discover(
    config: Settings, own: Settings = MappingProxyType({}), variants: Sequence[Settings] = ()
) -> dict[str, dict[str, Any]]:
    """What a tiny model of this config shows, by the types that checkpoints of it say.

    own: what the tiny config needs besides. variants: settings with which to look at it again; what
    they do not agree on is taken apart. LlmoptError where it cannot be walked.
    """
    found = [_described({**config, **each}, {**own, **each}) for each in ({}, *variants)]
    if "num_key_value_heads" in config:
        heads = {"num_key_value_heads": _HEADS}
        with contextlib.suppress(Exception):  # not every config can have that
            found.append(_described({**config, **heads}, {**own, **heads}))
    known = merged(found)
    text = config.get(_TEXT)
    if isinstance(text, dict) and text.get("model_type") in families.FAMILIES:
        known = _inside(config, own, str(text["model_type"]))
    try:
        return _checked(config, own, known, torch.float64)
    except RuntimeError:  # some models compute parts in float32, whatever they are given
        return _checked(config, own, known, torch.float32)


def _described(config: Settings, own: Settings) -> dict[str, Any]:
    model = tiny_model(tiny_config(config, own), dtype=torch.float32)
    return described(model, tokens())


def _inside(config: Settings, own: Settings, text_type: str) -> dict[str, Any]:
    """What is known of the text model, with the names that it has as a part, then those alone."""
    text = families.data_of(text_type)
    alone = text["stored_as"] or [[text["base"], text["head"]]]
    found = {**text, "text_config": _TEXT, "text_type": text_type}
    whole: Any = tiny_model(tiny_config(config, own), dtype=torch.float32, whole=True)
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        saved = [name for path in Path(folder).glob("*.safetensors") for name in _names(path)]
    naming = layouts(families.FAMILIES[text_type])[0]
    embedding = f"{naming.embedding}.weight".removeprefix(naming.base)
    block = f".{naming.family.blocks}.0."
    for name in saved:
        base = name.removesuffix(embedding)
        if name.endswith(embedding) and any(each.startswith(base + block) for each in saved):
            end = f"{naming.head.rpartition('.')[2]}.weight"
            heads = [each.removesuffix(".weight") for each in saved if each.endswith(end)]
            head = heads[0] if heads else naming.head
            return {**found, "stored_as": [[base, head], *(a for a in alone if a != [base, head])]}
    return {**found, "stored_as": alone}


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def tokens() -> Tensor:
    """int64 [7, 16]: none special; several batches, so that what depends on tokens differs."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 100, (7, 16), generator=generator)


def _checked(
    config: Settings, own: Settings, known: dict[str, Any], dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """With the attention that computes the type exactly; LlmoptError where none does."""
    model: Any = tiny_model(tiny_config(config, own), dtype=dtype, whole=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        if _TEXT not in saved:  # it is saved as the text model that it is
            known = {**known, "text_config": None, "text_type": None}
        for attention in ("sdpa", "eager"):
            found = {
                each: {**known, "attention": attention}
                for each in (config["model_type"], saved["model_type"])
            }
            for model_type, data in found.items():
                families.remember(model_type, data)
            try:
                if is_walked(Path(folder), model, tokens()):
                    return found
            except RequestError as error:
                if "attention implementation" not in error.message:
                    raise
    raise LlmoptError("walked block by block it gives other logits")
