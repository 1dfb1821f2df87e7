"""A model folder's tokenizer as the metadata of a GGUF file. No torch.

llama.cpp has a tokenizer of its own and takes from the file only tokens, merges or scores and a
few switches. What it could not do exactly is refused here rather than approximated, but for a few
things that no metadata can mend and that touch little text: `tokenizer_differences` names them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.pretokenizers import PreTokenizer, named, steps_of
from llmopt.formats.gguf.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from llmopt.formats.gguf.tokenizer_source import Rules, TokenizerSource, read_tokenizer
from llmopt.formats.gguf.tokenizer_spm import is_byte_token, sentencepiece_rules, unigram_rules

Metadata = dict[str, Any]

#: names of special tokens in the files -> in the keys of GGUF
SPECIAL_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
#: texts by which llama.cpp knows that a token ends generation
ENDS_BY_NAME = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"}
    | {"<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"}
    | {"<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["}
    | {"<｜end▁of▁sentence｜>"}
)
#: far above what vocabularies have; it bounds what a damaged file can ask for
_MOST_ROWS = 1 << 24
#: never formed by merging: what a vocabulary without merges has to name instead
NO_MERGES = ["[no] [merges]"]


def tokenizer_metadata(folder: Path, config: dict[str, Any]) -> Metadata:
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
        found |= _special_ids(source, config, tokens)
        found |= _add_special(source, found)
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


def tokenizer_differences(folder: Path, config: dict[str, Any]) -> list[str]:
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
        rows = _rows(source, config)
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
    for part in _parts(source.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        scheme = part.get("prepend_scheme", "always") if part["type"] == "Metaspace" else "never"
        if scheme == "first":
            found.append("text behind a special token gets a space in front, too")
        if scheme != "never":
            found.append("text that starts with a space gets another one in front")
    return found


def _parts(chain: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a chain of tokenizer.json, which may be a single one or none."""
    return list((chain or {}).get(name, [chain] if chain else ()))


def _rules(source: TokenizerSource) -> Rules:
    kind = source.tokenizer["model"].get("type", "BPE")
    if kind == "BPE" and _is_byte_level(source.tokenizer):
        return _byte_level_rules(source)
    if kind == "BPE":
        return sentencepiece_rules(source)
    if kind == "Unigram":
        return unigram_rules(source)
    raise RequestError(f"llama.cpp has no counterpart of {kind} tokenizers for decoders")


def _is_byte_level(tokenizer: dict[str, Any]) -> bool:
    steps = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
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


def _check_normalizer(normalizer: dict[str, Any] | None) -> None:
    for part in _parts(normalizer, "normalizers"):
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


def _rows(source: TokenizerSource, config: dict[str, Any]) -> int:
    """How many tokens the model has; RequestError for ids that no model has."""
    ids = source.vocabulary.values()
    text = config.get("text_config") or {}
    rows = int(config.get("vocab_size") or text.get("vocab_size") or max(ids) + 1)
    if min(ids) < 0 or not 0 < rows <= _MOST_ROWS:
        raise RequestError(f"ids of tokens from {min(ids)} in {rows} rows cannot be meant")
    return rows


def _tokens(
    source: TokenizerSource, rules: Rules, config: dict[str, Any]
) -> tuple[list[str], list[int], list[float]]:
    """Tokens, types and scores (none where the rules have none), up to the rows of the model."""
    rows = _rows(source, config)
    last = max(source.pieces, key=lambda token: source.pieces[token])
    if source.pieces[last] >= rows:
        raise RequestError(
            f"token {last!r} has id {source.pieces[last]}, and the model only {rows} rows"
        )
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    for token, number in source.pieces.items():
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


def _added(token: dict[str, Any], unknown: str | None, over_bytes: bool) -> tuple[int, str]:
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


def _special_ids(source: TokenizerSource, config: dict[str, Any], tokens: list[str]) -> Metadata:
    """Ids of special tokens: as the tokenizer's files name them, else as the config does."""
    text = config.get("text_config") or {}
    vocabulary = source.vocabulary
    found: dict[str, int] = {}
    for kind in SPECIAL_KEYS:
        said = source.special.get(kind)
        number = vocabulary.get(said) if said else None
        if number is None and kind == "unk":
            number = _unknown(source.tokenizer["model"])
        if number is None:
            number = config.get(f"{kind}_token_id", text.get(f"{kind}_token_id"))
        if isinstance(number, int) and 0 <= number < len(tokens):
            found[kind] = number
    ends = source.generation.get("eos_token_id")
    spare = [kind for kind in ("eot", "eom") if kind not in found]
    for number in ends if isinstance(ends, list) else [ends]:
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            continue
        known = number in found.values() or tokens[number] in ENDS_BY_NAME
        if not known and "eos" in found and spare:
            found[spare.pop(0)] = number
    return {f"tokenizer.ggml.{SPECIAL_KEYS[kind]}_token_id": i for kind, i in found.items()}


def _unknown(model: dict[str, Any]) -> int | None:
    """The id of the token that a model of tokenizer.json has for what it cannot cut, if any."""
    number = model["vocab"].get(model.get("unk_token")) if model.get("unk_token") else None
    return number if number is not None else model.get("unk_id")


def _add_special(source: TokenizerSource, found: Metadata) -> Metadata:
    """Whether a text gets a first and a last token, and their ids where the template says so.

    As in transformers, explicit switches in tokenizer_config.json replace tokenizer.json's
    template; a SentencePiece model all by itself is Llama's, with a first token.
    """
    processor = source.tokenizer.get("post_processor")
    bare = source.sentencepiece is not None and not (source.folder / "tokenizer.json").is_file()
    first, last = _template_ends(processor)
    result: Metadata = {}
    for kind, end in (("bos", first), ("eos", last)):
        key = f"tokenizer.ggml.{kind}_token_id"
        said = source.settings.get(f"add_{kind}_token")
        if isinstance(said, bool):
            add = said
        else:
            add = end is not None or (
                bare and kind == "bos" and found["tokenizer.ggml.model"] == "llama"
            )
            if end is not None:
                result[key] = source.vocabulary[end]
        result[f"tokenizer.ggml.add_{kind}_token"] = add and key in found | result
    return result


def _template_ends(processor: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """The tokens that a post-processor puts before and behind a text."""
    first = last = None
    for part in _parts(processor, "processors"):
        if part["type"] == "TemplateProcessing":
            names = [item for entry in part["single"] for item in entry.items()]
            where = next((i for i, (kind, _) in enumerate(names) if kind == "Sequence"), 0)
            if len(names) > 3 or where > 1 or len(names) - where > 2:
                raise RequestError("llama.cpp adds one token before a text and one behind, no more")
            if where == 1:
                first = str(names[0][1]["id"])
            if len(names) - where == 2:
                last = str(names[-1][1]["id"])
        elif part["type"] in ("BertProcessing", "RobertaProcessing"):
            first, last = part["cls"][0], part["sep"][0]
    return first, last
