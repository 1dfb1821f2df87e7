"""Small tokenizers of every kind, and what compares their ids."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from llmopt import demo
from llmopt.formats.gguf.pretokenizers import tokenizer_json_of
from llmopt.formats.gguf.sentencepiece import merges_by_score
from tests.mixed_text import mixed_lines

DEMO = Path(next(iter(demo.__path__))) / "model"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
COMPARED = ["demo", "gpt-2", "llama-bpe", "qwen2", "sentencepiece", "gemma", "plain"]


def save(folder: Path, content: dict[str, Any], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def byte_level(folder: Path, pre: str, size: int = 1500) -> Path:
    """A byte-level BPE trained with one of llama.cpp's pre-tokenizers, with special tokens."""
    chain, whole_words = tokenizer_json_of(pre)
    empty = json.loads(Tokenizer(models.BPE()).to_str()) | {"pre_tokenizer": chain}
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    tokenizer.train_from_iterator(
        mixed_lines(1200, seed=1),
        trainers.BpeTrainer(
            vocab_size=size,
            show_progress=False,
            special_tokens=["<|end|>", "<|first|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("  <x>  ")])
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = whole_words
    if pre == "llama-bpe":
        first = {"SpecialToken": {"id": "<|first|>", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|first|>": {"id": "<|first|>", "ids": [1], "tokens": ["<|first|>"]}
            },
        }
    return save(folder, content, eos_token="<|end|>")


@functools.cache
def pieces() -> list[tuple[str, float, int]]:
    """Pieces of a small SentencePiece model: text, score, type."""
    tokenizer = Tokenizer(models.BPE())
    lines = [
        line
        for line in mixed_lines(1500, seed=2)
        if "<" not in line and max(line, default="") < "ʰ"
    ]
    words = ["▁" + word for line in lines for word in line.split()]
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False)
    tokenizer.train_from_iterator([*words, *["▁" * 16] * 50], trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    found = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    found += [(byte, 0.0, 6) for byte in BYTES]
    longest_first = sorted(vocabulary, key=lambda piece: (len(piece) == 1, vocabulary[piece]))
    return found + [(piece, -float(i), 1) for i, piece in enumerate(longest_first)]


def sentencepiece(folder: Path, *steps: dict[str, Any], drop: int = 0) -> Path:
    """A tokenizer.json as transformers makes of a SentencePiece model; `drop` merges left out."""
    known = pieces()
    merges = merges_by_score({text: score for text, score, kind in known if kind == 1})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [{"id": i, "content": known[i][0], **flags, "special": True} for i in range(3)]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *special,
            {"id": len(known), "content": "\n\n", **flags, "special": False},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, SPACES]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, (text, _, _) in enumerate(known)},
            "merges": merges[: len(merges) - drop],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }
    return save(
        folder, content, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=False
    )


def differing(left: Any, right: Any, lines: tuple[str, ...]) -> list[str]:
    return [line for line in lines if left(line) != right(line)]


def encoder(folder: Path, *, add_special: bool = False, parse_special: bool = True) -> Any:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = not parse_special
    return lambda text: tokenizer.encode(text, add_special_tokens=add_special).ids


def with_special(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Lines with special and added tokens in front, inside and behind."""
    marks = ("<|end|>", "<|first|>", "<tool>", "  <x>  ", "<s>", "</s>", "<unk>", "\n\n")
    marked = []
    for i, line in enumerate(lines):
        mark = marks[i % len(marks)]
        middle = len(line) // 2
        marked.append((mark + line, line[:middle] + mark + line[middle:], line + mark)[i % 3])
    return tuple(marked)
