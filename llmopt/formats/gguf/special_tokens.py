"""Which tokens begin and end a text, as the keys of a GGUF file. No torch.

The tokenizer's files have the first word, then generation_config.json, then config.json. All the
tokens that end generation in transformers do so in llama.cpp, too: by a key or by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.added_tokens import TokenizerJson
from llmopt.formats.gguf.container import Metadata
from llmopt.formats.gguf.tokenizer_source import TokenizerSource, parts_of_chain

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
    "prefix": "fim_pre",
    "suffix": "fim_suf",
    "middle": "fim_mid",
}
#: texts by which llama.cpp knows that a token ends generation
ENDS_BY_NAME = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"}
    | {"<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"}
    | {"<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "[e~["}
    | {"<｜end▁of▁sentence｜>"}
)


@dataclass
class SpecialKeys:
    """Keys of special tokens, and sentences on what they leave out."""

    ids: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> Metadata:
        """As the file has them."""
        ids = {f"{SPECIAL_KEYS[kind]}_token_id": number for kind, number in self.ids.items()}
        adds = {f"add_{kind}_token": add for kind, add in self.adds.items()}
        return {f"tokenizer.ggml.{key}": value for key, value in (ids | adds).items()}


def special_keys(
    source: TokenizerSource, config: Mapping[str, Any], tokens: Sequence[str]
) -> SpecialKeys:
    """Keys of the special tokens among all `tokens` of the model.

    RequestError where the first or the last token of a text is none of them.
    """
    found = SpecialKeys()
    for kind in SPECIAL_KEYS:
        named = _named(source, kind)
        stated = _stated(source, config, kind) if named is None or kind == "eos" else []
        numbers = [named, *stated] if named is not None else stated
        fitting = [number for number in numbers if number < len(tokens)]
        if beyond := [number for number in numbers if number not in fitting]:
            text = source.special.get(kind) if beyond[0] == named else None
            what = f"the {kind} token {f'{text!r}, ' if text else ''}{beyond[0]}"
            if kind in ("bos", "eos"):
                raise RequestError(f"{what} is none of the {len(tokens)} that the model has")
            if text is None:
                found.remarks.append(f"{what}: left out, as the model has no row for it")
        if fitting:
            found.ids[kind] = fitting[0]
        if kind == "eos":
            ends = fitting
    _around_a_text(source, found, len(tokens))
    _other_ends(found, ends, tokens)
    return found


def _named(source: TokenizerSource, kind: str) -> int | None:
    """The id that the tokenizer's files give a kind of token."""
    text = source.special.get(kind)
    if text:
        return source.vocabulary[text]
    return _unknown(source.tokenizer["model"]) if kind == "unk" else None


def _stated(source: TokenizerSource, config: Mapping[str, Any], kind: str) -> list[int]:
    """The ids that the model's settings give it: those of the first file that has any."""
    files = {
        "generation_config.json": source.generation,
        "config.json": config,
        "text_config in config.json": config.get("text_config") or {},
    }
    for name, file in files.items():
        value = file.get(key := f"{kind}_token_id")
        numbers = [
            number
            for number in (value if isinstance(value, list) else [value])
            if number not in (None, -1)  # old files say -1 for none
        ]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise RequestError(f"{name} says {key} = {value!r}, which is no token"[:200])
        if numbers:
            return numbers
    return []


def _unknown(model: TokenizerJson) -> int | None:
    """The id of the token that a model of tokenizer.json has for what it cannot cut, if any."""
    number = model["vocab"].get(model.get("unk_token")) if model.get("unk_token") else None
    return number if number is not None else model.get("unk_id")


def _around_a_text(source: TokenizerSource, found: SpecialKeys, rows: int) -> None:
    """Whether a text gets a first and a last token, which the template of tokenizer.json says.

    As in transformers, switches in tokenizer_config.json count where there is no tokenizer.json;
    a SentencePiece model all by itself is Llama's, with a first token.
    """
    has_template = (source.folder / "tokenizer.json").is_file()
    bare = source.sentencepiece is not None and source.sentencepiece.kind == "BPE"
    ends = template_ends(source.tokenizer.get("post_processor"))
    for kind, end in zip(("bos", "eos"), ends, strict=True):
        said = source.settings.get(f"add_{kind}_token")
        if has_template:
            if end is not None and (number := source.vocabulary[end]) < rows:
                found.ids[kind] = number
            found.adds[kind] = end is not None
            if isinstance(said, bool) and said != found.adds[kind]:
                found.remarks.append(
                    f"add_{kind}_token in tokenizer_config.json is not followed, as transformers "
                    "goes by the template in tokenizer.json"
                )
        else:
            usual = bare and kind == "bos"
            found.adds[kind] = said if isinstance(said, bool) else usual
        found.adds[kind] &= kind in found.ids


def _other_ends(found: SpecialKeys, ends: Sequence[int], tokens: Sequence[str]) -> None:
    """Keys for tokens that end a text besides the usual one."""
    spare = [kind for kind in ("eot", "eom") if kind not in found.ids]
    unsaid = []
    for number in dict.fromkeys(ends):
        last = (found.ids.get(kind) for kind in ("eos", "eot", "eom"))
        if number in last or tokens[number] in ENDS_BY_NAME:
            continue
        if spare:
            found.ids[spare.pop(0)] = number
        else:
            unsaid.append(tokens[number])
    if unsaid:
        found.remarks.append(
            f"{', '.join(unsaid)} in generation does not end it, as GGUF has keys for three tokens"
        )


def template_ends(processor: TokenizerJson | None) -> tuple[str | None, str | None]:
    """The tokens that a post-processor puts before and behind a text."""
    first = last = None
    for part in parts_of_chain(processor, "processors"):
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
