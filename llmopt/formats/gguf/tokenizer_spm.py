"""SentencePiece's tokenizers as llama.cpp's "llama" (BPE by scores) and "t5" (unigram). No torch.

llama.cpp joins the two neighbours whose joined text is the piece of the best score, from the left
where scores tie. tokenizer.json lists merges instead. The two agree if every way to cut a piece in
two is a merge and the merges of one piece stand together; then the order of the merges gives the
scores. Otherwise llama.cpp's BPE over plain text does it, where no space is put before the text.
"""

from __future__ import annotations

import base64
import binascii
import re
from itertools import groupby, pairwise

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import TokenizerJson
from llmopt.formats.gguf.tokenizer_source import Rules, TokenizerSource

#: how llama.cpp's BPE over plain text cuts it first
LINE_BREAKS = {
    "type": "Split",
    "pattern": {"Regex": r"[^\n]+|[\n]+"},
    "behavior": "Isolated",
    "invert": False,
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def is_byte_token(text: str) -> bool:
    """Whether a token stands for one byte that no piece covers."""
    return _BYTE.fullmatch(text) is not None


def sentencepiece_rules(source: TokenizerSource) -> Rules:
    """Rules of a BPE over text with spaces made ▁; RequestError if llama.cpp cuts otherwise."""
    model = source.tokenizer["model"]
    if not model.get("byte_fallback"):
        raise RequestError("llama.cpp has no BPE that is neither over bytes nor falls back to them")
    merges = source.merges
    prefix = _space_prefix(source.tokenizer, merges)
    found_first = {token["content"] for token in source.added}
    pieces = [piece for piece in model["vocab"] if piece not in found_first or "▁" in piece]
    mixed = any(len({c == "\n" for c in left + right}) == 2 for left, right in merges)
    cut = source.tokenizer.get("pre_tokenizer") == LINE_BREAKS
    fault = "it cuts at line breaks first" if cut and mixed else None
    fault = fault or _missing_merge(merges, pieces) or _scattered_merges(merges)
    if fault is None:
        keys = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.add_space_prefix": prefix,
        }
        return Rules(keys, scores=_scores(source, merges))
    if prefix or (mixed and not cut):
        raise RequestError(f"llama.cpp does not merge as this tokenizer does: {fault}")
    return Rules(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "sarvam-moe",  # BPE over plain text, cut at line breaks only
            "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        }
    )


def _space_prefix(tokenizer: TokenizerJson, merges: list[tuple[str, str]]) -> bool:
    """Whether text gets a space in front; RequestError for steps other than spaces made ▁."""
    prefix = spaces = False
    normalizer = tokenizer.get("normalizer")
    for part in (normalizer or {}).get("normalizers", [normalizer]):
        if not part:
            continue
        if part == {"type": "Prepend", "prepend": "▁"}:
            prefix = True
        elif part == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            spaces = True
        else:
            raise RequestError(f"llama.cpp has no counterpart of the normalizer {part.get('type')}")
    chain = tokenizer.get("pre_tokenizer")
    for part in (chain or {}).get("pretokenizers", [chain]):
        at_spaces = part and part.get("type") == "Split" and part["pattern"] == {"String": " "}
        if not part or part == LINE_BREAKS or (at_spaces and spaces):
            continue  # no space is left to split at
        if part.get("type") != "Metaspace" or part.get("replacement") != "▁":
            raise RequestError(
                f"llama.cpp has no counterpart of the pre-tokenizer {part.get('type')}"
            )
        inner = any("▁" in (left + right)[1:] for left, right in merges)
        if inner and part.get("split", True):
            raise RequestError("llama.cpp merges across spaces, and this tokenizer does not")
        scheme = part.get("prepend_scheme", "always")
        prefix = prefix or scheme != "never"
        spaces = True
    if not spaces:
        raise RequestError("llama.cpp turns spaces into ▁, and this tokenizer does not")
    return prefix


def _missing_merge(merges: list[tuple[str, str]], vocabulary: list[str]) -> str | None:
    """A pair that joins to a piece, and that no merge joins; None where there is none."""
    known = set(merges)
    pieces = {left + right for left, right in merges}
    pieces |= {piece for piece in vocabulary if len(piece) == 1}
    for piece in vocabulary:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces and (left, right) not in known:
                return f"{left!r} and {right!r} make the piece {piece!r}, and are no merge"
    return None


def _scattered_merges(merges: list[tuple[str, str]]) -> str | None:
    """A piece whose merges have others in between; None where there is none."""
    done: set[str] = set()
    for piece, _ in groupby(left + right for left, right in merges):
        if piece in done:
            return f"the merges that make {piece!r} do not follow one another"
        done.add(piece)
    return None


def _scores(source: TokenizerSource, merges: list[tuple[str, str]]) -> dict[str, float]:
    """Scores by piece: the SentencePiece model's where it has them in this order, else ranks."""
    order = list(dict.fromkeys(left + right for left, right in merges))
    if source.sentencepiece is not None:
        said = {text: score for text, score, _ in source.sentencepiece.pieces}
        ranked = [said.get(piece, float("nan")) for piece in order]
        if all(a > b for a, b in pairwise(ranked)):  # false where one is not
            return said
    scores = dict.fromkeys(source.vocabulary, 0.0)
    return scores | {piece: -float(rank) for rank, piece in enumerate(order)}


def unigram_rules(source: TokenizerSource) -> Rules:
    """Rules of a unigram model; RequestError for steps that llama.cpp does not have."""
    model = source.tokenizer["model"]
    keys: TokenizerJson = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }
    for chain, parts in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = source.tokenizer.get(chain) or {}
        for step in steps.get(parts, [steps]):
            keys |= _unigram_step(step) if step else {}
    return Rules(keys, scores={text: float(score) for text, score in model["vocab"]})


def _unigram_step(step: TokenizerJson) -> TokenizerJson:
    """The keys by which llama.cpp takes a step of a unigram model's chains."""
    kind = step["type"]
    if kind == "Precompiled":
        try:
            charsmap = base64.b64decode(step["precompiled_charsmap"], validate=True)
        except binascii.Error as error:
            raise RequestError("its character map is not base64") from error
        return {"tokenizer.ggml.precompiled_charsmap": charsmap}
    if kind == "WhitespaceSplit" or step.get("pattern") == {"Regex": " {2,}"}:
        return {"tokenizer.ggml.remove_extra_whitespaces": True}
    if kind == "Prepend" or (kind == "Metaspace" and step.get("prepend_scheme") != "never"):
        return {"tokenizer.ggml.add_space_prefix": True}
    if kind in ("Strip", "Metaspace") or step.get("pattern") == {"String": " "}:
        return {}
    raise RequestError(f"llama.cpp's unigram tokenizer has no counterpart of the step {kind}")
