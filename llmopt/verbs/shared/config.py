"""What a step rewrites in config.json, from what becomes of the tensors. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pydantic import JsonValue

from llmopt.errors import RequestError
from llmopt.formats.config import config_of
from llmopt.formats.engine_names import EngineNames
from llmopt.formats.side_files import CODE
from llmopt.model.apply import own_config
from llmopt.model.change import Change, ConfigChange
from llmopt.model.contents import Contents
from llmopt.model.layout import Layout
from llmopt.recipe import Source
from llmopt.recipe.source import Key
from llmopt.specs import FORMATS
from llmopt.specs.families import Naming
from llmopt.specs.formats import PLAIN
from llmopt.verbs.shared.changes import DTYPES, unquantized

#: names the code that comes with a model, which stays behind
AUTO_MAP = "auto_map"
QUANTIZATION = "quantization_config"
#: what transformers calls the dtypes of headers
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def config_changes(
    contents: Contents, changes: Sequence[Change], format_id: str, *,
    damping: float | None = None, true_sequential: bool = False,
) -> tuple[ConfigChange, ...]:  # fmt: skip
    """What config.json says otherwise once these are the tensors of a checkpoint of the format.

    Where layouts are not settled yet, what it says of them is not decided.
    """
    config = own_config(contents)
    found = [*_code(contents), *_rewritten(contents, changes)]
    if format_id == PLAIN or not layers(changes):
        if QUANTIZATION in config:
            found.append(_removed(QUANTIZATION, "no linear is quantized"))
        return tuple(found)
    value = quantization_config(
        changes, contents.naming, format_id, damping=damping, true_sequential=true_sequential
    )
    settled = all(change.settled and not change.options for change in changes)
    why = f"linears are in format {format_id}"
    return (*found, ConfigChange(key=(QUANTIZATION,), value=value, why=why, decided=settled))


def bare_config(contents: Contents) -> tuple[ConfigChange, ...]:
    """The same where the weights are in no checkpoint, and no config says how they are stored."""
    found = [*_code(contents), *_own_head(contents, ())]
    if QUANTIZATION in own_config(contents):
        found.append(_removed(QUANTIZATION, "the weights say how they are stored"))
    return tuple(found)


def quantization_config(
    changes: Iterable[Change], naming: Naming, format_id: str, *,
    damping: float | None = None, true_sequential: bool = False,
) -> dict[str, JsonValue]:  # fmt: skip
    """What a config says of linears in a format; RequestError where it cannot say it."""
    changes, spec = list(changes), FORMATS[format_id]
    said = config_of(format_id).quantization_config(
        layers(changes),
        version=spec.version,
        unquantized=unquantized(changes, naming),
        head=naming.head,
        names=EngineNames(naming),
        damping=damping,
        true_sequential=true_sequential,
    )
    return dict(said)


def layers(changes: Iterable[Change]) -> dict[str, Layout]:
    """The layouts of all quantized linears, by module, as a config says them."""
    return {change.module: _said(change) for change in changes if change.layout}


def _said(change: Change) -> Layout:
    """Blocks that fill rows may be computed with as DeepSeek's are, activations and all."""
    layout = change.layout
    assert layout is not None
    if change.quantized and layout.blocks and change.shape[1] % layout.group_size == 0:
        return replace(layout, activations=layout.grid)
    return layout


def check_config(
    changes: Iterable[Change], naming: Naming, format_id: str, source: Source, key: Key
) -> None:
    """RecipeError at `key` where a format's config cannot express these settings together."""
    changes = list(changes)
    if not layers(changes):
        return
    try:
        quantization_config(changes, naming, format_id)
    except RequestError as error:
        name, is_setting, value = (error.hint or "").partition(": ")
        hint = source.says((*key[:-1], name), value) if is_setting else error.hint
        raise source.error(error.message, key, hint) from None


def _code(contents: Contents) -> Iterator[ConfigChange]:
    if AUTO_MAP in contents.config:
        yield _removed(AUTO_MAP, f"{CODE} stays behind")


def _removed(key: str, why: str) -> ConfigChange:
    return ConfigChange(key=(key,), removed=True, why=why)


def _rewritten(contents: Contents, changes: Sequence[Change]) -> Iterator[ConfigChange]:
    """Of the model as a whole: the dtype of plain weights, and whether the head shares any."""
    decoded = (
        change.dtype
        for change in changes
        if "decoded" in change.actions and contents.tensors[change.sources[0]].layout
    )
    if dtype := next(decoded, None):
        key = "torch_dtype" if "torch_dtype" in contents.config else "dtype"
        yield from _everywhere(contents, key, _NAMES[dtype], f"decoded linears are {dtype}")
    yield from _own_head(contents, changes)


def _own_head(contents: Contents, changes: Sequence[Change]) -> Iterator[ConfigChange]:
    head = f"{contents.naming.head}.weight"
    present = contents.tensors.get(head)
    if (present and present.layout) or any(c.layout for c in changes if c.name == head):
        why = "the head has weights of its own"
        yield from _everywhere(contents, "tie_word_embeddings", False, why)


def _everywhere(contents: Contents, key: str, value: JsonValue, why: str) -> Iterator[ConfigChange]:
    """A member of the config, and of the text model's part of it, where they say otherwise."""
    inner = contents.family.text_config
    for path in ((), (inner,)) if inner is not None else ((),):
        part = contents.config[path[0]] if path else contents.config
        if key not in part or part[key] != value:
            yield ConfigChange(key=(*path, key), value=value, why=why)
