"""What a model says of itself, as a GGUF file's `general.*` keys, and back. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.formats.gguf.container import Metadata

_HUB = "https://huggingface.co/"
_HUB_ID = re.compile(rf"{_HUB}([\w.-]+/[\w.-]+)/?")
_MOST_BASES = 100
#: keys of the front matter of a model card -> keys of GGUF, where they hold the same
_SAME = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
    "tags": "general.tags",
}


def general(card: Mapping[str, Any], name: str) -> Metadata:
    """The keys that llama.cpp's converter makes of a model card's front matter and a model's name.

    What is no text, nor a list of texts, is left out. The name stands unless the card has one.
    """
    from gguf import GGUFWriter
    from gguf import Metadata as Card

    texts = {key: value for key, value in card.items() if _is_text(value)}
    found = Card.apply_metadata_heuristic(Card(), texts, None, Path(name))
    found.name = _first(texts.get("model_name") or texts.get("name")) or name
    for key, value in vars(found).items():
        # lists where one text is meant; licences may be several
        if isinstance(value, list) and key not in ("license", *_LISTED):
            setattr(found, key, value[0])
    writer = GGUFWriter(None, "")
    found.set_gguf_meta_model(writer)
    return {key: each.value for key, each in writer.kv_data[0].items()}


#: members of gguf's Metadata that are lists
_LISTED = ("tags", "languages", "base_models", "datasets")


def front_matter(metadata: Mapping[str, Any]) -> JsonObject:
    """The front matter of a model card for a GGUF file; empty where the file says nothing."""
    found = {key: metadata[name] for key, name in _SAME.items() if _is_text(metadata.get(name))}
    for key, kind in (("base_model", "base_model"), ("datasets", "dataset")):
        count = metadata.get(f"general.{kind}.count")
        numbers = range(min(count, _MOST_BASES)) if type(count) is int else ()
        urls = [metadata.get(f"general.{kind}.{number}.repo_url") for number in numbers]
        ids = [match[1] for url in urls if (match := _HUB_ID.fullmatch(str(url)))]
        if ids:
            found[key] = ids
    return found


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each for each in value)
    return isinstance(value, str) and bool(value)


def _first(value: Any) -> str | None:
    return str(value[0] if isinstance(value, list) else value) if value else None
