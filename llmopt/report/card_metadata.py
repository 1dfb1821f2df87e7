"""What a model says of itself and hands on to what is made from it: licence, language, ancestors.

A source says it in the YAML front matter of its README.md (the hub's model card), else with a
licence file; an artifact of llmopt has it in its manifest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeGuard

import yaml
from yaml.constructor import BaseConstructor

from llmopt.artifact import CARD, Artifact, CardEntry, ParentEntry
from llmopt.errors import RecipeError, RequestError
from llmopt.recipe.reader import compose

#: members of the front matter that stay true of a model made from another
CARRIED = (
    "license",
    "license_name",
    "license_link",
    "language",
    "library_name",
    "pipeline_tag",
    "tags",
)
#: members of a card's front matter that are texts or lists of texts
FrontMatter = dict[str, str | list[str]]
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_BEGINS = re.compile(r"\A\ufeff?---[ \t]*\r?\n")
_MEND = "mend it: the licence that it states is carried over to what is made here"
#: characters of a card that are read: front matter has hundreds
_LONGEST = 100_000
_LICENCE_NAMES = ("license", "licence", "copying")
#: how the text of a licence begins -> what the hub calls it
_LICENCES = (
    (re.compile(r"apache license,? version 2\.0"), "apache-2.0"),
    (re.compile(r"(the )?mit license"), "mit"),
    (re.compile(r"llama 2 community license"), "llama2"),
    (re.compile(r"(meta )?llama 3 community license"), "llama3"),
    (re.compile(r"llama 3\.1 community license"), "llama3.1"),
    (re.compile(r"llama 3\.2 community license"), "llama3.2"),
    (re.compile(r"llama 3\.3 community license"), "llama3.3"),
    (re.compile(r"llama 4 community license"), "llama4"),
)


def describe(parent: Artifact, entry: ParentEntry, *, quantized: bool) -> CardEntry:
    """What the manifest of a model made from `parent` keeps for its card.

    `entry` is the parent as the manifest names it; it has a revision where it came from the hub.
    The result has `metadata` (front matter) and `original`, the first ancestor that is known.
    """
    inherited = parent.manifest.get("card")
    source = entry.get("source") or entry["name"]
    own_id = [source] if entry.get("revision") else []
    if inherited:
        metadata = dict(inherited["metadata"])
        bases = [*_as_list(metadata.get("base_model")), *own_id]
        original = inherited["original"]
    else:
        metadata = declared(parent.path)
        bases = own_id or _as_list(metadata.get("base_model"))
        original = {
            "source": source,
            "revision": entry.get("revision"),
            "digest": entry["digest"],
        }
    was_quantized = metadata.pop("base_model_relation", None) == "quantized"
    metadata.pop("base_model", None)
    if bases:
        metadata["base_model"] = bases[0] if len(bases) == 1 else list(dict.fromkeys(bases))
        if quantized or was_quantized:
            metadata["base_model_relation"] = "quantized"
    return {"metadata": metadata, "original": original}


def declared(folder: Path) -> FrontMatter:
    """What a foreign model says of itself: texts and lists of texts.

    Raises RequestError where the front matter is not YAML: a licence must not get lost in it.
    """
    found = _front_matter(folder / CARD)
    wanted = (*CARRIED, "base_model", "base_model_relation")
    metadata: FrontMatter = {}
    for key in wanted:
        value = found.get(key)
        if (isinstance(value, str) and value) or (
            isinstance(value, list) and value and all(isinstance(i, str) and i for i in value)
        ):
            metadata[key] = value
    if "license" not in metadata:
        metadata |= _licence_of_file(folder)
    return metadata


def front_matter(model: Artifact) -> dict[str, object]:
    """All that a model's card says of it in its front matter, or an artifact's manifest for it."""
    inherited = model.manifest.get("card")
    if inherited:
        return dict(inherited["metadata"])
    return _front_matter(model.path / CARD) | declared(model.path)


def licence_files(names: list[str]) -> list[str]:
    """Those of a model's files that state its licence or go with it."""
    wanted = (*_LICENCE_NAMES, "notice", "use_policy")
    return [name for name in names if name.lower().startswith(wanted)]


def _front_matter(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        card, more = file.read(_LONGEST), file.read(1)
    match = _FRONT_MATTER.match(card)
    if match is not None:
        return _parsed(match[1], path)
    if more and _BEGINS.match(card):
        raise RequestError(
            f"the front matter of {path} does not end within {_LONGEST:,} characters", hint=_MEND
        )
    return {}


def _parsed(text: str, path: Path) -> dict[str, object]:
    try:
        node = compose(text, path.name)
        # every scalar a text: the language `no` must not become false
        found = None if node is None else BaseConstructor().construct_document(node)
    except (RecipeError, yaml.YAMLError) as error:
        plain = error.plain if isinstance(error, RecipeError) else getattr(error, "problem", "")
        problem = plain.removeprefix("not valid YAML: ") or "it cannot be parsed"
        raise RequestError(
            f"the front matter of {path} is not valid YAML: {problem}", hint=_MEND
        ) from None
    return found if isinstance(found, dict) else {}


def _licence_of_file(folder: Path) -> dict[str, str]:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.lower().startswith(_LICENCE_NAMES):
            with path.open(encoding="utf-8", errors="replace") as file:
                start = " ".join(file.read(_LONGEST).split()).lower()
            for pattern, name in _LICENCES:
                if pattern.match(start):
                    return {"license": name, "license_link": path.name}
            return {"license": "other", "license_link": path.name}
    return {}


def _is_text(value: object) -> TypeGuard[str | list[str]]:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) and item for item in value)
    return isinstance(value, str) and bool(value)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
