"""Tokens that are added to the model of a tokenizer, from whichever files name them. No torch.

As transformers reads them: those of tokenizer.json; those of added_tokens_decoder in
tokenizer_config.json or, where there is none, of added_tokens.json; and special tokens that only
their names stand for (`eos_token`, `additional_special_tokens`). A token that the model has keeps
its id, and any other gets the next one that is free, whatever its file says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: what foreign files say of a tokenizer: of any shape, and of many versions of other libraries
TokenizerJson = dict[str, Any]


def declared(
    settings: Mapping[str, Any], added: Mapping[str, int], special: Iterable[str]
) -> list[TokenizerJson]:
    """Tokens of the files beside tokenizer.json, by id. added: the content of added_tokens.json.

    special: the texts of those that are special wherever added_tokens.json names them.
    """
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        tokens = [{**token, "id": int(number)} for number, token in decoder.items()]
    else:
        named = set(special)
        tokens = [
            {"id": number, "content": text}
            | {"special": text in named, "normalized": text not in named}
            for text, number in added.items()
        ]
    return sorted(tokens, key=lambda token: token["id"])


def special_tokens(named: Iterable[str], *files: Mapping[str, Any]) -> list[TokenizerJson]:
    """Special tokens of which the settings in `files` may know only the texts.

    named: those that have a part to play, as the first of a text.
    """
    found: list[Any] = [*named]
    for file in files:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = file.get(key) or ()
            found.extend(listed.values() if isinstance(listed, dict) else listed)
    tokens = [token if isinstance(token, dict) else {"content": str(token)} for token in found]
    return [{**token, "special": True} for token in tokens if token["content"]]


def with_ids(pieces: Mapping[str, int], tokens: Iterable[Mapping[str, Any]]) -> list[TokenizerJson]:
    """Each token once, with the id that it gets; of two of a text, what the later one says."""
    found: dict[str, TokenizerJson] = {}
    following = len(pieces)
    for token in tokens:
        text = str(token["content"])
        before = found.get(text, {})
        number = before["id"] if before else pieces.get(text, following)
        special = bool(token.get("special") or before.get("special"))
        found[text] = {**before, **token, "id": number, "special": special}
        following = max(following, number + 1)
    return list(found.values())


def moved(tokens: Iterable[Mapping[str, Any]], ids: Mapping[str, int]) -> list[str]:
    """Sentences on tokens that get another id than their file gives them."""
    said = {str(token["content"]): token["id"] for token in tokens if "id" in token}
    return [
        f"{text} has the id {ids[text]}, and not {number} as its file says"
        for text, number in said.items()
        if number != ids[text]
    ]
