"""A model folder's tokenizer as the metadata of a GGUF file. No torch.

llama.cpp has a tokenizer of its own and takes from the file only tokens, merges or scores and a
few switches. What it could not do exactly is refused here rather than approximated, but for a few
things that no metadata can mend and that touch little text: `tokenizer_differences` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import TokenizerJson
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.gguf.pretokenizers import PreTokenizer, named, steps_of
from llmopt.formats.gguf.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from llmopt.formats.gguf.special_tokens import ENDS_BY_NAME, special_keys
from llmopt.formats.gguf.tokenizer_source import (
    MOST_ROWS,
    Rules,
    TokenizerSource,
    parts_of_chain,
    read_tokenizer,
)
from llmopt.formats.gguf.tokenizer_spm import is_byte_token, sentencepiece_rules, unigram_rules

#: never formed by merging: what a vocabulary without merges has to name instead
NO_MERGES = ["[no] [merges]"]


def tokenizer_metadata(folder: Path, config: Mapping[str, Any]) -> Metadata:
    """The `tokenizer.*` keys of a GGUF file for the tokenizer in a Hugging Face model folder.

    config: of the model; its vocab_size is how many tokens there are, those without a name being
    filled in as unused. Ints are meant as uint32, lists of int as int32, floats as float32, bytes
    as uint8. RequestError, in one sentence, for a tokenizer that llama.cpp does not have.
    """
    with _blamed_on(folder):
        source = read_tokenizer(folder, config)
        rules = _rules(source)
        tokens, types, scores = _tokens(source, rules, config)
        found: Metadata = {
            **rules.metadata,
            "tokenizer.ggml.tokens": tokens,
            **({"tokenizer.ggml.scores": scores} if scores else {}),
            "tokenizer.ggml.token_type": types,
        }
        if beyond := {token for token, number in source.pieces.items() if number >= len(tokens)}:
            merges = [
                " ".join(pair) for pair in source.merges if not beyond & {*pair, "".join(pair)}
            ]
            if "tokenizer.ggml.merges" in found:
                found["tokenizer.ggml.merges"] = merges or NO_MERGES
        found |= special_keys(source, config, tokens).metadata
    for name, template in source.templates.items():
        suffix = "" if name == "default" else f".{name}"
        found[f"tokenizer.chat_template{suffix}"] = template
    if others := [name for name in source.templates if name != "default"]:
        found["tokenizer.chat_templates"] = others
    return found


@contextmanager
def _blamed_on(folder: Path) -> Iterator[None]:
    """Say which tokenizer an error is about; what its files should not hold becomes one, too."""
    try:
        yield
    except RequestError as error:
        message = f"the tokenizer in {folder}: {error.message}"
        raise RequestError(message, hint=error.hint) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"the tokenizer in {folder} has a part that is malformed") from error


def tokenizer_differences(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp will cut otherwise than the tokenizer in `folder` does, in sentences.

    Empty where it cuts every text alike. RequestError as `tokenizer_metadata`.
    """
    with _blamed_on(folder):
        source = read_tokenizer(folder, config)
        if _is_byte_level(source.tokenizer):
            found = _byte_level_differences(source)
        else:
            found = _plain_text_differences(source)
        if any(token.get("lstrip") or token.get("rstrip") for token in source.added):
            found.append("white space beside special tokens is not stripped")
        if any(token.get("single_word") for token in source.added):
            found.append("added tokens are found inside of words, too")
        found.extend(source.remarks)
        tokens, _, _ = _tokens(source, _rules(source), config)
        found.extend(special_keys(source, config, tokens).remarks)
        rows = len(tokens)
        if beyond := sum(number >= rows for number in source.pieces.values()):
            found.append(f"{beyond} pieces from id {rows} on: left out, as the model has no rows")
        if unused := [token["content"] for token in source.added if token["id"] >= rows]:
            found.append(f"{', '.join(unused)}: left out, as the model has no row for it")
        names = {token["content"] for token in source.added}
        if by_name := sorted(ENDS_BY_NAME & source.vocabulary.keys() - names):
            found.append(f"{', '.join(by_name)} in a text ends it, as a special token would")
    return found


def _byte_level_differences(source: TokenizerSource) -> list[str]:
    found = []
    if source.tokenizer.get("normalizer"):
        found.append("text is not brought into Unicode's composed form (NFC) first")
    difference = _pre_tokenizer(source).difference if source.merges else None
    return found + ([difference] if difference else [])


def _plain_text_differences(source: TokenizerSource) -> list[str]:
    found = []
    if source.tokenizer["model"].get("type") == "Unigram":
        found.append("runs of white space may be cut otherwise")
    if any("▁" in token["content"] and not token.get("normalized") for token in source.added):
        found.append("tokens of ▁ are not found where ▁ itself stands in the text")
    schemes = {
        part.get("prepend_scheme", "always")
        for part in parts_of_chain(source.tokenizer.get("pre_tokenizer"), "pretokenizers")
        if part["type"] == "Metaspace"
    }
    steps = parts_of_chain(source.tokenizer.get("normalizer"), "normalizers")
    if any(step["type"] == "Prepend" for step in steps):
        if str(source.settings.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer":
            schemes.add("always")  # what transformers 5 makes of it
        elif late := [t["content"] for t in source.added if t.get("normalized")]:
            found.append(
                f"{', '.join(late)}: found without a space in front, too, and text behind gets one"
            )
    if "first" in schemes:
        found.append("text behind a special token gets a space in front, too")
    if schemes - {"never"}:
        found.append("text that starts with a space gets another one in front")
    return found


def _rules(source: TokenizerSource) -> Rules:
    kind = source.tokenizer["model"].get("type", "BPE")
    if kind == "BPE" and _is_byte_level(source.tokenizer):
        return _byte_level_rules(source)
    if kind == "BPE":
        return sentencepiece_rules(source)
    if kind == "Unigram":
        return unigram_rules(source)
    raise RequestError(f"llama.cpp has no counterpart of {kind} tokenizers for decoders")


def _is_byte_level(tokenizer: TokenizerJson) -> bool:
    steps = parts_of_chain(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step["type"] == "ByteLevel" for step in steps)


def _byte_level_rules(source: TokenizerSource) -> Rules:
    model = source.tokenizer["model"]
    for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise RequestError(f"llama.cpp's BPE has no {option}")
    _check_normalizer(source.tokenizer.get("normalizer"))
    # without merges it does not matter where words end
    pre = _pre_tokenizer(source) if source.merges else named(steps_of({"type": "ByteLevel"}))[0]
    return Rules(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre.name,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in source.merges] or NO_MERGES,
        },
        over_bytes=True,
    )


def _check_normalizer(normalizer: TokenizerJson | None) -> None:
    for part in parts_of_chain(normalizer, "normalizers"):
        if part["type"] != "NFC":
            raise RequestError(
                f"llama.cpp has no counterpart of the normalizer {part.get('type')} before bytes"
            )


def _pre_tokenizer(source: TokenizerSource) -> PreTokenizer:
    """The pre-tokenizer that cuts by the same steps and takes whole words as this one does."""
    options = named(steps_of(source.tokenizer["pre_tokenizer"]))
    whole_words = bool(source.tokenizer["model"].get("ignore_merges"))
    for option in options:
        if option.whole_words == whole_words:
            return option
    if not _merges_reach_all(source):
        raise RequestError(
            f"ignore_merges is {str(whole_words).lower()} here and the opposite in llama.cpp's "
            f"pre-tokenizer {options[0].name}, which splits in the same way"
        )
    return options[0]


def _merges_reach_all(source: TokenizerSource) -> bool:
    """Whether merging builds every token, so that taking whole words changes nothing."""
    from tokenizers.models import BPE

    vocabulary = source.tokenizer["model"]["vocab"]
    bpe = BPE(vocab=vocabulary, merges=source.merges)
    return all([part.value for part in bpe.tokenize(token)] == [token] for token in vocabulary)


def _rows(source: TokenizerSource, config: Mapping[str, Any]) -> int:
    """How many tokens the model has; RequestError for ids that no model has."""
    ids = source.vocabulary.values()
    text = config.get("text_config") or {}
    rows = int(config.get("vocab_size") or text.get("vocab_size") or max(ids) + 1)
    if min(ids) < 0 or not 0 < rows <= MOST_ROWS:
        raise RequestError(f"ids of tokens from {min(ids)} in {rows} rows cannot be meant")
    return rows


def _tokens(
    source: TokenizerSource, rules: Rules, config: Mapping[str, Any]
) -> tuple[list[str], list[int], list[float]]:
    """Tokens, types and scores (none where the rules have none), up to the rows of the model."""
    rows = _rows(source, config)
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for token, number in source.pieces.items():
        if number >= rows:
            continue
        tokens[number] = token
        types[number] = BYTE if not rules.over_bytes and is_byte_token(token) else NORMAL
    if source.sentencepiece is not None:
        for number, (token, _, kind) in enumerate(source.sentencepiece.pieces[:rows]):
            if kind == UNUSED and tokens[number] == token:
                types[number] = UNUSED
    unknown = None if rules.over_bytes else source.tokenizer["model"].get("unk_token")
    for entry in source.added:
        if entry["id"] < rows:  # a model has no use for others, as Gemma 3's of images
            types[entry["id"]], tokens[entry["id"]] = _added(entry, unknown, rules.over_bytes)
    if len(set(tokens)) != rows or "" in tokens:
        raise RequestError("a token is empty, or two have the same text")
    if rules.scores is None:
        return tokens, types, []
    # unused rows get upstream's score for them
    return tokens, types, [rules.scores.get(token, -10000.0) for token in tokens]


def _added(token: TokenizerJson, unknown: str | None, over_bytes: bool) -> tuple[int, str]:
    """Type and text of an added token: llama.cpp looks for it before it does anything else."""
    text = str(token["content"])
    if not over_bytes:
        if text == unknown:
            return UNKNOWN, text
        if is_byte_token(text):
            return BYTE, text
        if "▁" in text and not token.get("special"):
            # found in the text as it stands, or only where spaces have become ▁: then as a piece
            return (
                (USER_DEFINED, text.replace("▁", " "))
                if token.get("normalized")
                else (NORMAL, text)
            )
    looks_special = text in ("<pad>", "<mask>", "[@BOS@]", "<2mass>") or any(
        text.startswith(start) and text.endswith(end)
        for start, end in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )
    return (CONTROL if token.get("special") or looks_special else USER_DEFINED), text
