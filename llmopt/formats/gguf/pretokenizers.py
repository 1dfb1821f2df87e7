"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does, and back.

A byte-level BPE cuts text into words before it merges bytes. tokenizer.json spells the cutting out
as a chain of steps; llama.cpp knows a fixed set of chains by name (`tokenizer.ggml.pre`). The chain
itself is compared, in a normal form, so that a tokenizer with a known regex works whatever its
vocabulary. Some names that llama.cpp keeps apart cut alike: the best known one is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import TokenizerJson

#: the regex inside the ByteLevel pre-tokenizer
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*SUFFIX"
    rf"|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_TEKKEN = _CASED.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")
_GPT4O = _CASED.replace("SUFFIX", f"{_CONTRACTIONS}?").replace("DIGITS", r"\p{N}{1,3}")
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_SEED = _QWEN2.replace(r"\p{N}]+[\r\n]*|", r"\p{N}\r\n]+|")
_SPACES = "|".join(rf"\s{{{2**k}}}(?!\S)" for k in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"
_JAIS2 = _LLAMA3.replace(r"\s+(?!\S)|\s+", _SPACES)
# escapes where an editor would compose the character into another one
_LATIN = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅ"
    "Ὀ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎ"
    "ↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_PUNCTUATION = "<punctuation, contiguous>"
#: before a step that cuts bytes spelled in GPT-2's alphabet rather than text
_ON_BYTES = "<on bytes>"


_NEWER_UNICODE = "characters that Unicode made punctuation since version 9 count as such"
_ASCII_CASE = "words are cut between lower and upper case in ASCII only, and before combining marks"


@dataclass(frozen=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers: the regexes that cut, one after another.

    `whole_words` is llama.cpp's ignore_merges: a word that is a token is not built by merges.
    """

    name: str
    steps: tuple[str, ...]
    whole_words: bool = False
    difference: str | None = None  # what llama.cpp's own version cuts otherwise


#: where two share their steps and `whole_words`, the first is the one that is written
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer("gpt-2", (GPT2,)),
    PreTokenizer("llama-bpe", (_LLAMA3,), whole_words=True),
    PreTokenizer("smaug-bpe", (_LLAMA3,)),
    PreTokenizer("qwen2", (_QWEN2,)),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer("smollm", (r"\p{N}", GPT2)),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    PreTokenizer(
        "deepseek-llm",
        (r"[\r\n]", _LATIN, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}"),
        difference="the ideographic space U+3000 does not count as punctuation",
    ),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    PreTokenizer("tekken", (_TEKKEN,), whole_words=True, difference=_ASCII_CASE),
    PreTokenizer("gpt-4o", (_GPT4O,), difference=_ASCII_CASE),
    PreTokenizer("seed-coder", (_SEED,)),
    PreTokenizer("jais-2", (_JAIS2,)),
    # llama.cpp's for files that name none
    PreTokenizer("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), whole_words=True),
)

#: names with which llama.cpp puts the first token before a text if the file does not say
ADDS_BOS = frozenset(
    {"llama-bpe", "tekken", "gemma4"}
    | {"llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
)
#: other names that llama.cpp gives to the same cutting, for reading files
ALIASES = {
    "gpt-2": "phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum modern-bert "
    "exaone4 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
    "smaug-bpe": "dbrx chatglm-bpe",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 "
    "bailingmoe bailingmoe2 llada-moe",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
}
_BY_NAME = {p.name: p for p in PRE_TOKENIZERS} | {
    alias: p for p in PRE_TOKENIZERS for alias in ALIASES.get(p.name, "").split()
}


def normal_form(regex: str) -> str:
    """A regex with spellings that match alike made equal.

    `\\s*[\\r\\n]+` ends at the last line break of a run of white space with or without its plus;
    quantifiers that give nothing back match as greedy ones do before a class that they exclude.
    """
    regex = regex.replace("\r", "\\r").replace("\n", "\\n").replace("\\p{N}{1}", "\\p{N}")
    regex = regex.replace("?+\\p{L}", "?\\p{L}").replace("]++[", "]+[")
    regex = regex.replace("'(?i:[sdmt]|ll|ve|re)", _CONTRACTIONS)
    regex = regex.replace(
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS
    )
    return regex.replace(r"|\s*[\r\n]|", r"|\s*[\r\n]+|")


#: Falcon's own chain: its further cuts change nothing for a vocabulary that was trained with them
_FALCON = PreTokenizer(
    "falcon",
    (_PUNCTUATION, GPT2, _ON_BYTES + r"\p{N}+", _ON_BYTES + "[0-9][0-9][0-9]"),
    difference=_NEWER_UNICODE,
)
_BY_STEPS: dict[tuple[str, ...], list[PreTokenizer]] = {}
for _known in (*PRE_TOKENIZERS, _FALCON):
    _BY_STEPS.setdefault(tuple(map(normal_form, _known.steps)), []).append(_known)


def steps_of(pre_tokenizer: TokenizerJson | None) -> tuple[str, ...]:
    """The regexes that a byte-level chain of tokenizer.json cuts by, in normal form.

    RequestError where it holds a step that no pre-tokenizer of llama.cpp has.
    """
    steps: list[str] = []
    mapped = ""
    for part in (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]):
        if part:
            steps += [mapped + step for step in _step(part)]
            if part.get("type") == "ByteLevel":
                mapped = _ON_BYTES
    return tuple(steps)


def _step(part: TokenizerJson) -> tuple[str, ...]:
    kind = part.get("type")
    if kind == "ByteLevel":
        if part.get("add_prefix_space"):
            raise RequestError(
                "llama.cpp puts no space before the text of a byte-level BPE, and this tokenizer "
                "does (add_prefix_space)"
            )
        return (normal_form(GPT2),) if part.get("use_regex", True) else ()
    if kind == "Digits":
        return (r"\p{N}" if part.get("individual_digits") else r"\p{N}+",)
    if kind == "Punctuation" and part.get("behavior") == "Contiguous":
        return (_PUNCTUATION,)
    regex = part.get("pattern", {}).get("Regex") if kind == "Split" else None
    cut = (part.get("behavior"), bool(part.get("invert")))
    # a regex that matches every character leaves nothing between its matches to remove
    if regex and (cut == ("Isolated", False) or (cut == ("Removed", True) and r"|\s+" in regex)):
        return (normal_form(regex),)
    raise RequestError(f"llama.cpp has no pre-tokenizer with the step {part}")


def named(steps: tuple[str, ...]) -> list[PreTokenizer]:
    """The pre-tokenizers of llama.cpp that cut by these steps; RequestError if there is none."""
    found = _BY_STEPS.get(steps)
    if not found:
        text = " then ".join(steps) or "no splitting at all"
        raise RequestError(
            f"llama.cpp has no pre-tokenizer that splits as this tokenizer.json does: {text}"
        )
    return found


def tokenizer_json_of(name: str) -> tuple[TokenizerJson, bool]:
    """The `pre_tokenizer` of a tokenizer.json that cuts as llama.cpp's `name`, and ignore_merges.

    RequestError for a name that is not known here.
    """
    known = _BY_NAME.get(name)
    if known is None:
        raise RequestError(f"the pre-tokenizer {name!r} of this GGUF file is not known to llmopt")
    cut = {"type": "Split", "behavior": "Isolated", "invert": False}
    steps: list[TokenizerJson] = [cut | {"pattern": {"Regex": regex}} for regex in known.steps]
    steps.append(
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    )
    if known.steps == (GPT2,):  # as GPT-2's own tokenizer.json says it
        return {**steps[-1], "use_regex": True}, known.whole_words
    return {"type": "Sequence", "pretokenizers": steps}, known.whole_words
