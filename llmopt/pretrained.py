"""The one door to transformers' loaders: data of a model is read, code that comes with it never.

Nothing else in llmopt makes a config, a model or a tokenizer of transformers (a test walks the
syntax trees). No torch before a model is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmopt.errors import RequestError
from llmopt.specs.family import NOT_THE_MODEL

#: files of which each alone makes a tokenizer
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "*.tiktoken", "tiktoken.model"),
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has files that a tokenizer can be made of, by their names."""
    return any(path.is_file() for name in _TOKENIZERS for path in folder.glob(name))


def model_config(settings: Mapping[str, Any]) -> Any:
    """transformers' config of a model, from the part of config.json that describes it."""
    from transformers import AutoConfig

    told = {
        key: value
        for key, value in settings.items()
        if key not in NOT_THE_MODEL and not key.startswith("_")
    }
    return AutoConfig.for_model(**_numbers(told))


def _numbers(value: Any) -> Any:
    """With numbers that JSON has not (`{"__float__": "Infinity"}`) as numbers."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _numbers(each) for key, each in value.items()}
    return [_numbers(each) for each in value] if isinstance(value, list) else value


def model_of(config: Any, *, dtype: Any, attention: str) -> Any:
    """transformers' own model of a config, its weights as they happen to be initialized."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_config(
        config,
        dtype=dtype,
        attn_implementation=attention,
        experts_implementation="eager",  # others hide which expert computes what
        trust_remote_code=False,
    )
    model.generation_config = GenerationConfig()  # none of the settings that config.json may hide
    return model


def whole_model_of(config: Any, *, dtype: Any, attention: str) -> Any:
    """The model with all its parts, of a config of several; as `model_of` for one of text alone."""
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return model_of(config, dtype=dtype, attention=attention)
    return AutoModelForImageTextToText.from_config(
        config,
        dtype=dtype,
        attn_implementation=attention,
        experts_implementation="eager",
        trust_remote_code=False,
    )


def tokenizer_of(folder: Path) -> Any:
    """transformers' own tokenizer for the files in a local folder; asks no network and no user.

    RequestError where there is none, where it cannot be read, and where it is code.
    """
    _refuse_code(folder)
    from transformers import AutoTokenizer, dynamic_module_utils

    # a loader inside transformers that forgets the flag raises, and does not ask on stdout
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    with panics_as(f"{folder}: not a readable tokenizer"):
        try:
            return AutoTokenizer.from_pretrained(
                folder.resolve(), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # of every type, for files that hold anything
            raise RequestError(
                f"{folder}: no tokenizer that can be read",
                hint="copy tokenizer.json and tokenizer_config.json beside the weights",
            ) from error


@contextmanager
def panics_as(what: str) -> Iterator[None]:
    """RequestError for panics of the tokenizers package, which are no subclass of Exception.

    A regex of a tokenizer.json that backtracks without end ends in one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RequestError(f"{what} ({error})") from error


def _refuse_code(folder: Path) -> None:
    """RequestError where the files name code, or what is no tokenizer, as the tokenizer."""
    for name in ("tokenizer_config.json", "config.json"):
        settings = read_settings(folder / name)
        code = _code_of(settings.get("auto_map"))
        if code is not None:
            raise RequestError(
                f"the tokenizer of {folder} is code of its own ({code} in {name}), "
                "and llmopt runs no code that comes with a model",
                hint="a model with a plain tokenizer.json needs none",
            )
        wanted = settings.get("tokenizer_class")
        if wanted is not None and not _names_a_tokenizer(wanted):
            raise RequestError(f"{folder / name}: tokenizer_class {wanted!r} is no tokenizer")


def _code_of(auto_map: Any) -> str | None:
    """What an auto_map says of the tokenizer; an old form holds nothing else."""
    found = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    if not found:
        return None
    references = found if isinstance(found, list) else [found]
    return next((str(reference) for reference in references if reference), str(found))


def _names_a_tokenizer(name: Any) -> bool:
    """Whether a class of this name, if transformers has one, is a tokenizer and loads itself."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if not isinstance(name, str):
        return False
    found = tokenizer_class_from_name(name)
    return found is None or (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase))


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object beside a model's weights; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not valid JSON") from error
    if not isinstance(settings, dict):
        raise RequestError(f"{path}: not a JSON object")
    return settings
