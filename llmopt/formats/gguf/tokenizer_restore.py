"""The tokenizer files of a Hugging Face model folder from the metadata of a GGUF file. No torch.

What is written cuts text as llama.cpp does with that metadata. Files are tokenizer.json,
tokenizer_config.json (of a class that transformers 4 and 5 know), generation_config.json (which
tokens end a text) and chat_template.jinja.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.pretokenizers import ADDS_BOS, tokenizer_json_of
from llmopt.formats.gguf.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_by_score,
)
from llmopt.formats.gguf.special_tokens import ENDS_BY_NAME, SPECIAL_KEYS
from llmopt.formats.gguf.tokenizer import NO_MERGES
from llmopt.formats.gguf.tokenizer_spm import LINE_BREAKS

#: pre-tokenizers of llama.cpp that work on plain text with spaces made ▁
_PLAIN_TEXT = ("sarvam-moe", "gemma4")
#: far above what vocabularies have; it bounds the search for merges
_LONGEST = 1024
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the tokenizer that a GGUF file's metadata describes into a model folder.

    RequestError where the metadata has no tokenizer, a broken one, or one of a kind that
    tokenizer.json has no counterpart of.
    """
    tokens, types = _tokens(metadata)
    special = {
        kind: tokens[number]
        for kind, name in SPECIAL_KEYS.items()
        if isinstance(number := metadata.get(f"tokenizer.ggml.{name}_token_id"), int)
        and 0 <= number < len(tokens)
    }
    kind = metadata["tokenizer.ggml.model"]
    plain = kind == "gemma4" or metadata.get("tokenizer.ggml.pre") in _PLAIN_TEXT
    if kind == "gpt2" and not plain:
        content = _byte_level(metadata, tokens, types)
    elif kind in ("gpt2", "gemma4"):
        content = _plain_text(metadata, tokens, types, special)
    elif kind == "llama":
        content = _sentencepiece(metadata, tokens, types, special)
    elif kind == "t5":
        content = _unigram(metadata, tokens, types, special)
    else:
        raise RequestError(f"tokenizer.json has no counterpart of llama.cpp's tokenizer {kind!r}")
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(metadata, tokens, types),
        **content,
        "post_processor": _post_processor(metadata, special, tokens, kind),
    }
    _write_json(folder / "tokenizer.json", content)
    _write_json(folder / "tokenizer_config.json", _settings(metadata, special))
    _write_json(folder / "generation_config.json", _generation(tokens, types, special))
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        (folder / "chat_template.jinja").write_text(template, "utf-8")
    for key, other in sorted(metadata.items()):
        name = key.removeprefix("tokenizer.chat_template.")
        if isinstance(other, str) and name != key and name.isidentifier():
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(other, "utf-8")


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _list(metadata: Mapping[str, Any], key: str, kind: type, length: int = 0) -> list[Any]:
    """A list of the metadata, checked, with an entry for each of `length` tokens; empty if none."""
    found = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise RequestError(f"the GGUF file's tokenizer.ggml.{key} is not a list of {kind.__name__}")
    if kind is float and not all(map(math.isfinite, found)):
        raise RequestError(f"the GGUF file's tokenizer.ggml.{key} has a number that is not finite")
    if len(found) < length:
        raise RequestError(f"the GGUF file's tokenizer.ggml.{key} has no entry for every token")
    return found[:length] if length else found


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens and their types; RequestError where the lists are not what they should be."""
    tokens = _list(metadata, "tokens", str)
    if not tokens or not isinstance(metadata.get("tokenizer.ggml.model"), str):
        raise RequestError("the GGUF file has no tokenizer")
    if len(set(tokens)) != len(tokens):
        raise RequestError("the GGUF file's tokenizer has two tokens with the same text")
    if max(map(len, tokens)) > _LONGEST:
        raise RequestError(f"the GGUF file's tokenizer has a token of over {_LONGEST} characters")
    if "tokenizer.ggml.token_type" not in metadata:
        return tokens, [NORMAL] * len(tokens)
    return tokens, _list(metadata, "token_type", int, len(tokens))


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Text -> id, without the names that fill the rows of no token."""
    return {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED or token != f"[PAD{i}]"
    }


def _added_tokens(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> list[dict[str, object]]:
    """Tokens that are looked for in the text before all else; those of control are special.

    As llama.cpp does, whatever the file says: what ends generation by its name is special, and
    Phi-3, which it knows by the model's name, strips white space behind special tokens.
    """
    name = str(metadata.get("general.name", "")).lower()
    strips = "phi-3" in name or "phi3" in name
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": strips and token not in ("<unk>", "<s>", "<|endoftext|>"),
            "normalized": False,
            "special": kind != USER_DEFINED or token in ENDS_BY_NAME,
        }
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED) or token in ENDS_BY_NAME
    ]


def _merges(metadata: Mapping[str, Any]) -> list[list[str]]:
    found = _list(metadata, "merges", str)
    merges: list[list[str]] = []
    for merge in found if found != NO_MERGES else ():
        cut = merge.find(" ", 1)
        if cut < 0:
            raise RequestError(f"the GGUF file has a merge that is not two parts: {merge!r}")
        merges.append([merge[:cut], merge[cut + 1 :]])
    return merges


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, object]:
    known = vocabulary.keys()
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocabulary,
        "merges": [m for m in merges if m[0] in known and m[1] in known and m[0] + m[1] in known],
    }


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> dict[str, object]:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    chain, whole_words = tokenizer_json_of(name)
    return {
        "normalizer": None,
        "pre_tokenizer": chain,
        "decoder": _BYTE_LEVEL,
        "model": _bpe(_vocabulary(tokens, types), _merges(metadata), ignore_merges=whole_words),
    }


def _decoder(prefix: bool) -> dict[str, object]:
    steps: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _plain_text(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], special: dict[str, str]
) -> dict[str, object]:
    model = _bpe(
        _vocabulary(tokens, types),
        _merges(metadata),
        unk_token=special.get("unk"),
        fuse_unk=True,
        byte_fallback=True,
    )
    return {
        "normalizer": _SPACES,
        "pre_tokenizer": LINE_BREAKS,
        "decoder": _decoder(prefix=False),
        "model": model,
    }


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], special: dict[str, str]
) -> dict[str, object]:
    scores = _list(metadata, "scores", float, len(tokens))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    # a piece of any type but byte can come of joining; what is found before is not text any more
    joined = {
        token: scores[i]
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != BYTE
    }
    steps = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, _SPACES]},
        "pre_tokenizer": None,
        "decoder": _decoder(prefix),
        "model": _bpe(
            _vocabulary(tokens, types),
            merges_by_score(joined),
            unk_token=special.get("unk"),
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _unigram(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], special: dict[str, str]
) -> dict[str, object]:
    scores = _list(metadata, "scores", float, len(tokens))
    steps: list[dict[str, object]] = []
    if charsmap := _charsmap(metadata):
        text = base64.b64encode(charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces"):
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    if prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, _SPACES]},
        "pre_tokenizer": None,
        "decoder": _decoder(prefix),
        "model": {
            "type": "Unigram",
            "unk_id": tokens.index(special["unk"]) if "unk" in special else None,
            "vocab": [[token, score] for token, score in zip(tokens, scores, strict=True)],
            "byte_fallback": BYTE in types,
        },
    }


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    """SentencePiece's table of what to replace; empty if none, RequestError if it is not bytes."""
    found = metadata.get("tokenizer.ggml.precompiled_charsmap", b"")
    if isinstance(found, bytes):
        return found
    # llama.cpp reads arrays of int8, too, whose upper half is negative
    if isinstance(found, list) and all(type(b) is int and -128 <= b <= 255 for b in found):
        return bytes(byte & 255 for byte in found)
    raise RequestError("the GGUF file's tokenizer.ggml.precompiled_charsmap is not a list of bytes")


def _post_processor(
    metadata: Mapping[str, Any], special: dict[str, str], tokens: list[str], kind: str
) -> dict[str, object] | None:
    """The first and last token that llama.cpp adds, by the file's switches or its own defaults."""
    defaults = {"bos": kind == "llama", "eos": kind == "t5"}
    pre = metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and isinstance(pre, str):
        defaults["bos"] = pre in ADDS_BOS
    ends: dict[str, dict[str, object]] = {}
    for end, default in defaults.items():
        if end in special and metadata.get(f"tokenizer.ggml.add_{end}_token", default):
            ends[end] = {"SpecialToken": {"id": special[end], "type_id": 0}}
    if not ends:
        return None

    def around(name: str) -> list[dict[str, object]]:
        first = [ends["bos"]] if "bos" in ends else []
        last = [ends["eos"]] if "eos" in ends else []
        return [*first, {"Sequence": {"id": name, "type_id": 0}}, *last]

    return {
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": [*around("A"), *around("B")],
        "special_tokens": {
            special[end]: {
                "id": special[end],
                "ids": [tokens.index(special[end])],
                "tokens": [special[end]],
            }
            for end in ends
        },
    }


def _settings(metadata: Mapping[str, Any], special: dict[str, str]) -> dict[str, object]:
    """tokenizer_config.json."""
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": text for kind, text in special.items() if kind not in ("eot", "eom")},
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": length} if isinstance(length, int) else {}),
    }


def _generation(tokens: list[str], types: list[int], special: dict[str, str]) -> dict[str, object]:
    """generation_config.json: llama.cpp ends at eos, eot, eom and at tokens it knows by name."""
    ids = {kind: tokens.index(text) for kind, text in special.items()}
    ends = [ids[kind] for kind in ("eos", "eot", "eom") if kind in ids]
    if ends:
        ends += [
            i for i, token in enumerate(tokens) if types[i] == CONTROL and token in ENDS_BY_NAME
        ]
        ends = list(dict.fromkeys(ends))
    found: dict[str, object] = {f"{k}_token_id": ids[k] for k in ("bos", "pad") if k in ids}
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return found
