"""The tokenizer files of a Hugging Face model folder, read into one shape. No torch.

tokenizer.json says it all where there is one; vocab.json with merges.txt, a SentencePiece model or
a tiktoken vocabulary are brought into its form.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import (
    TokenizerJson,
    declared,
    moved,
    special_tokens,
    with_ids,
)
from llmopt.formats.gguf.bytelevel import bytes_to_text
from llmopt.formats.gguf.pretokenizers import tokenizer_json_of
from llmopt.formats.gguf.sentencepiece import SentencePieceModel, read_sentencepiece

#: far above what vocabularies have; it bounds what a damaged file can ask for
MOST_ROWS = 1 << 24
#: what transformers' classes without a tokenizer.json cut text by, under llama.cpp's names
_CLASS_PRE = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
#: and the models that ship a bare tiktoken vocabulary
_TIKTOKEN_PRE = {"llama": "llama-bpe", "qwen": "qwen2"}


@dataclass(frozen=True)
class Rules:
    """How llama.cpp is to cut text: its keys, whether tokens are bytes in GPT-2's alphabet, and
    the scores of pieces where it goes by scores."""

    metadata: TokenizerJson
    over_bytes: bool = False
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class TokenizerSource:
    """tokenizer.json's content, the settings beside it, and scores by piece where a file has them.

    special: kind ("bos", "eos", ...) -> text. templates: name -> chat template ("default" first).
    added: tokens that are looked for in a text before it is cut. remarks: sentences on what the
    files say and transformers does not do.
    """

    folder: Path
    tokenizer: TokenizerJson
    settings: TokenizerJson
    special: dict[str, str]
    templates: dict[str, str]
    sentencepiece: SentencePieceModel | None = None
    generation: TokenizerJson = field(default_factory=dict)
    added: tuple[TokenizerJson, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def merges(self) -> list[tuple[str, str]]:
        """Merges of a BPE, best first, whichever way the file spells them."""
        found: list[tuple[str, str]] = []
        for merge in self.tokenizer["model"].get("merges", ()):
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            found.append((left, right))
        return found

    @property
    def pieces(self) -> dict[str, int]:
        """Text of every token of the model proper -> id."""
        return _pieces(self.tokenizer)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Text of every token of the model and of those added to it -> id."""
        return self.pieces | {token["content"]: token["id"] for token in self.added}


def read_tokenizer(folder: Path, config: Mapping[str, object]) -> TokenizerSource:
    """Read the tokenizer of a model folder; RequestError where there is none that can be read."""
    settings = _json(folder / "tokenizer_config.json")
    model = folder / "tokenizer.model"
    pieces = None
    if model.is_file() and not _is_tiktoken(model):
        pieces = read_sentencepiece(model)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _json(folder / "tokenizer.json")
        if not isinstance(tokenizer.get("model"), dict) or "vocab" not in tokenizer["model"]:
            raise RequestError(f"{folder / 'tokenizer.json'} has no model with a vocabulary")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _from_vocab_and_merges(folder, settings)
    elif pieces is not None:
        tokenizer = pieces.tokenizer_json()
    elif files := [*sorted(folder.glob("*.tiktoken")), *([model] if model.is_file() else [])]:
        tokenizer = _from_tiktoken(files[0], config, settings)
    else:
        raise RequestError("there is none", hint="put the model's tokenizer.json into the folder")
    mapping = _json(folder / "special_tokens_map.json")
    special = _special(settings, mapping, pieces)
    added, remarks = _added(folder, tokenizer, settings, mapping, special)
    return TokenizerSource(
        folder=folder,
        tokenizer=tokenizer,
        settings=settings,
        special=special,
        templates=_templates(folder, settings),
        sentencepiece=pieces,
        generation=_json(folder / "generation_config.json"),
        added=tuple(added),
        remarks=tuple(remarks),
    )


def parts_of_chain(chain: TokenizerJson | None, name: str) -> list[TokenizerJson]:
    """The steps of a chain of tokenizer.json, which may be a single one or none."""
    return list((chain or {}).get(name, [chain] if chain else ()))


def _pieces(tokenizer: TokenizerJson) -> dict[str, int]:
    found = tokenizer["model"]["vocab"]
    return found if isinstance(found, dict) else {piece: i for i, (piece, _) in enumerate(found)}


def _added(
    folder: Path,
    tokenizer: TokenizerJson,
    settings: TokenizerJson,
    mapping: TokenizerJson,
    special: dict[str, str],
) -> tuple[list[TokenizerJson], list[str]]:
    """Added tokens with their ids, and sentences on what is not as the files say."""
    names = _json(folder / "added_tokens.json")
    listed = special_tokens(dict.fromkeys(special.values()), mapping, settings)
    beside = declared(settings, names, (token["content"] for token in listed))
    tokens = [*(tokenizer.get("added_tokens") or ()), *beside]
    for token in tokens:
        if type(token["id"]) is not int or not 0 <= token["id"] < MOST_ROWS:
            raise RequestError(f"id {token['id']!r} of {token['content']!r} cannot be meant")
    pieces = _pieces(tokenizer)
    found = with_ids(pieces, [*tokens, *listed])
    ids = pieces | {token["content"]: token["id"] for token in found}
    remarks = moved(tokens, ids)
    if unread := [text for text in names if text not in ids]:
        remarks.append(
            f"{', '.join(unread)}: left out, as transformers does not read added_tokens.json "
            "beside an added_tokens_decoder"
        )
    return found, remarks


def _json(path: Path) -> TokenizerJson:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{path} does not hold a JSON object")
    return found


def _special(
    settings: TokenizerJson, mapping: TokenizerJson, pieces: SentencePieceModel | None
) -> dict[str, str]:
    """Texts of the special tokens that the files name.

    As in transformers, special_tokens_map.json has the last word in folders of old, whose
    tokenizer_config.json lists no added tokens.
    """
    found: dict[str, str] = dict(pieces.special) if pieces and not settings else {}
    old = settings.get("added_tokens_decoder") is None
    for file in (settings, mapping) if old else (mapping, settings):
        for key, value in file.items():
            text = value.get("content") if isinstance(value, dict) else value
            kind = key.removesuffix("_token")
            if key.endswith("_token") and isinstance(text, str) and not key.startswith("add_"):
                found[kind] = text
    return found


def _templates(folder: Path, settings: TokenizerJson) -> dict[str, str]:
    """Chat templates by name; a file of their own wins over tokenizer_config.json."""
    found: dict[str, str] = {}
    said = settings.get("chat_template")
    if isinstance(said, str):
        found["default"] = said
    elif isinstance(said, list):
        found = {entry["name"]: entry["template"] for entry in said}
    beside = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(beside, str):
        found["default"] = beside
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    return found


def _byte_level(vocabulary: dict[str, int], merges: list[list[str]], pre: str) -> TokenizerJson:
    chain, whole_words = tokenizer_json_of(pre)
    return {
        "pre_tokenizer": chain,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "ignore_merges": whole_words,
        },
    }


def _from_vocab_and_merges(folder: Path, settings: TokenizerJson) -> TokenizerJson:
    name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if name not in _CLASS_PRE:
        raise RequestError(
            f"{folder} has vocab.json and merges.txt, but {name or 'no tokenizer_class'} does not "
            "say how to split words",
            hint="add the tokenizer.json that transformers writes for this tokenizer",
        )
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise RequestError(f"{folder / 'merges.txt'} has a line that is not two parts")
    return _byte_level(_json(folder / "vocab.json"), merges, _CLASS_PRE[name])


def _is_tiktoken(path: Path) -> bool:
    """Whether a file starts as a list of base64 tokens and ranks does."""
    with path.open("rb") as file:
        first = file.readline(4096).split()
    try:
        return (
            len(first) == 2
            and first[1].isdigit()
            and bool(base64.b64decode(first[0], validate=True))
        )
    except binascii.Error:
        return False


def _from_tiktoken(
    path: Path, config: Mapping[str, object], settings: TokenizerJson
) -> TokenizerJson:
    pre = _TIKTOKEN_PRE.get(str(config.get("model_type")))
    if pre is None:
        raise RequestError(
            f"{path} does not say how to split words",
            hint="add the tokenizer.json that transformers writes for this tokenizer",
        )
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{path} is not a tiktoken vocabulary: {error}") from error
    merges = [
        [bytes_to_text(part) for part in _last_merge(ranks, token, rank)]
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    ]
    vocabulary = {bytes_to_text(token): rank for token, rank in ranks.items()}
    # here, transformers fills what lies between the ranks and the ids of added tokens
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        vocabulary.setdefault(token["content"], int(number))
    return _byte_level(vocabulary, [pair for pair in merges if len(pair) == 2], pre)


def _last_merge(ranks: dict[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """The parts that merges of ranks below `limit` leave of a token: two, if one more makes it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        options = [
            (ranks.get(left + right, limit), i) for i, (left, right) in enumerate(pairwise(parts))
        ]
        rank, i = min(options, default=(limit, 0))
        if rank >= limit:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
