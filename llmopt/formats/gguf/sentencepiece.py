"""SentencePiece model files, as far as a tokenizer needs them. No torch, no sentencepiece.

The file is one protocol buffer message, ModelProto: field 1 are the pieces (text, score, type),
field 2 how it was trained, field 3 how text is normalised
(github.com/google/sentencepiece, src/sentencepiece_model.proto).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import TokenizerJson

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
#: field number in trainer_spec -> the special token whose id it holds, and the default id
_SPECIAL_FIELDS = {40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}
_MAX_FILE = 256 << 20


@dataclass(frozen=True)
class SentencePieceModel:
    """Pieces (text, score, type) by id, and what the file says of training and normalising."""

    pieces: list[tuple[str, float, int]]
    kind: str  # "BPE" or "Unigram"
    special: dict[str, str]
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def tokenizer_json(self) -> TokenizerJson:
        """The tokenizer.json that cuts text as this model does (of the parts read here)."""
        marked = [
            {"id": i, "content": text, "special": kind != USER_DEFINED, "normalized": False}
            for i, (text, _, kind) in enumerate(self.pieces)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        return {
            "added_tokens": marked,
            "normalizer": self._normalizer(),
            "pre_tokenizer": None,
            "model": self._model(),
        }

    def _model(self) -> TokenizerJson:
        if self.kind == "Unigram":
            pieces = [[text, score] for text, score, _ in self.pieces]
            return {"type": "Unigram", "vocab": pieces, "byte_fallback": self._has_bytes()}
        return {
            "type": "BPE",
            "vocab": {text: i for i, (text, _, _) in enumerate(self.pieces)},
            "merges": merges_by_score(
                {text: score for text, score, k in self.pieces if k == NORMAL}
            ),
            "byte_fallback": self._has_bytes(),
            "unk_token": self.special.get("unk"),
        }

    def _has_bytes(self) -> bool:
        return any(kind == BYTE for _, _, kind in self.pieces)

    def _normalizer(self) -> TokenizerJson:
        steps: list[TokenizerJson] = []
        if self.charsmap:
            text = base64.b64encode(self.charsmap).decode("ascii")
            steps.append({"type": "Precompiled", "precompiled_charsmap": text})
        if self.remove_extra_whitespaces and self.kind == "Unigram":
            steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
            steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        if self.add_dummy_prefix:
            steps.append({"type": "Prepend", "prepend": "▁"})
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
        return {"type": "Sequence", "normalizers": steps}


def merges_by_score(scores: dict[str, float]) -> list[list[str]]:
    """Merges for a BPE that joins as SentencePiece does: the pair whose piece scores best first.

    scores: piece -> score, of the pieces that text can become, in the order of their ids. Every
    way to cut a piece into two others is a merge; those of one piece go by the ids of the two.
    """
    ids = {piece: i for i, piece in enumerate(scores)}
    found: list[tuple[float, int, int, int, str, str]] = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[piece], ids[left], ids[right], left, right))
    found.sort(key=lambda merge: merge[:4])
    return [[left, right] for *_, left, right in found]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a model file; RequestError where it is not one, or of a kind without a counterpart."""
    if path.stat().st_size > _MAX_FILE:
        raise RequestError(f"{path} is too large for a SentencePiece model")
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(value))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise RequestError(f"{path} is not a SentencePiece model") from error
    kind = {_UNIGRAM: "Unigram", _BPE: "BPE"}.get(trainer.get(3, _UNIGRAM))
    if kind is None or not pieces:
        raise RequestError(f"{path} is a SentencePiece model of words or characters, not of pieces")
    special = {}
    for number, (name, default) in _SPECIAL_FIELDS.items():
        position = trainer.get(number, default)
        if 0 <= position < len(pieces):  # -1 is a huge unsigned number here
            special[name] = pieces[position][0]
    return SentencePieceModel(
        pieces=pieces,
        kind=kind,
        special=special,
        charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, True)),
        remove_extra_whitespaces=bool(normalizer.get(4, True)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message's fields: ints, or bytes that are not interpreted."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field reaches past the end")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
