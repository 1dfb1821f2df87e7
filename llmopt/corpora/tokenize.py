"""Documents to one stream of token ids, with the model's own tokenizer. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmopt.corpora.source import Corpus
from llmopt.errors import RequestError
from llmopt.pretrained import panics_as, read_settings, tokenizer_of

_BATCH = 256  # documents encoded at once: keeps every core busy and the encodings' memory small

_Encode = Callable[[Sequence[str], bool], list[list[int]]]
"""(texts, whether the tokenizer adds its special tokens) -> ids of each text."""


@dataclass(frozen=True)
class Tokens:
    """A corpus as the model sees it.

    ids: [tokens] int32, documents concatenated with the family's separators between them.
    first: the id that begins every sequence of this family (its bos), or None.
    """

    name: str
    ids: NDArray[np.int32]
    first: int | None


@dataclass(frozen=True)
class _Separators:
    """How a family marks documents.

    own: the tokenizer adds special tokens to each text by itself; before, after: what we add to
    each document; first: the bos that begins every sequence, or None.
    """

    own: bool
    before: tuple[int, ...]
    after: tuple[int, ...]
    first: int | None


def tokenize(corpus: Corpus, folder: Path) -> Tokens:
    """Encode every document with the tokenizer in the model's `folder`.

    Separators are the family's: where the tokenizer adds special tokens by itself (a bos) they
    stand around each document; where it adds none, each document is followed by eos (or bos, for
    a tokenizer without eos). A rendered chat has its own and gets no others.
    """
    encode, separators = _backend(folder)
    own = separators.own and not corpus.rendered
    before = () if corpus.rendered else separators.before
    after = () if corpus.rendered else separators.after
    pieces: list[NDArray[np.int32]] = []
    for start in range(0, len(corpus.documents), _BATCH):
        encoded = encode(corpus.documents[start : start + _BATCH], own)
        pieces.extend(np.asarray([*before, *ids, *after], dtype=np.int32) for ids in encoded)
    return Tokens(corpus.name, np.concatenate(pieces), separators.first)


def _separators(
    added: list[int], bos: int | None, eos: int | None, *, add_bos: bool = False
) -> _Separators:
    """From the ids that the tokenizer adds to an empty text, and its named tokens.

    `add_bos`: the tokenizer's configuration asks for a bos, which its tokenizer.json may not add.
    """
    if added:
        return _Separators(True, (), (), bos if added[0] == bos else None)
    if add_bos and bos is not None:
        return _Separators(False, (bos,), (), bos)
    end = bos if eos is None else eos
    return _Separators(False, (), () if end is None else (end,), None)


def _backend(folder: Path) -> tuple[_Encode, _Separators]:
    if (folder / "tokenizer.json").is_file():
        return _fast(folder)
    return _from_transformers(folder)


def _fast(folder: Path) -> tuple[_Encode, _Separators]:
    """tokenizer.json through the tokenizers package: no transformers, all cores."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    with panics_as(f"{path}: not a readable tokenizer"):
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise RequestError(f"{path}: not a readable tokenizer ({error})") from error
    tokenizer.no_truncation()  # some files carry a training set-up's limits
    tokenizer.no_padding()
    config = read_settings(folder / "tokenizer_config.json")

    def encode(texts: Sequence[str], special: bool) -> list[list[int]]:
        with panics_as(f"{path}: the tokenizer fails on the text"):
            encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def named(key: str) -> int | None:
        token = config.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        return tokenizer.token_to_id(content) if isinstance(content, str) else None

    return encode, _separators(
        encode([""], True)[0],
        named("bos_token"),
        named("eos_token"),
        add_bos=config.get("add_bos_token") is True,
    )


def _from_transformers(folder: Path) -> tuple[_Encode, _Separators]:
    """Tokenizers without a tokenizer.json (a vocabulary and merges, a SentencePiece model)."""
    tokenizer = tokenizer_of(folder)

    def encode(texts: Sequence[str], special: bool) -> list[list[int]]:
        with panics_as(f"{folder}: the tokenizer fails on the text"):
            encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    return encode, _separators(
        encode([""], True)[0], tokenizer.bos_token_id, tokenizer.eos_token_id
    )
