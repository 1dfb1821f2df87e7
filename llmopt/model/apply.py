"""What a model holds once changes are carried out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llmopt.model.change import Change, ConfigChange, configured
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.specs.base import CHECKPOINT
from llmopt.specs.families import Naming, naming_in
from llmopt.specs.ggml import GGML_TYPES


def apply(
    contents: Contents, changes: Iterable[Change], config_changes: Iterable[ConfigChange] = (),
    *, format_id: str | None, kind: str = CHECKPOINT,
) -> Contents:  # fmt: skip
    """The contents of what is written; names, family and config are those of then.

    `format_id` is the format of its quantized linears, None where there is none; `kind` is what
    it lies in then.
    RequestError where the names or the config are no longer those of a model.
    """
    written = {change.name: change for change in changes if change.written}
    config = configured(own_config(contents), config_changes)
    naming = naming_in(config, written)
    tensors = {name: _tensor(change, naming) for name, change in written.items()}
    return Contents(config, naming.family, naming, tensors, format_id, kind)


def own_config(contents: Contents) -> dict[str, Any]:
    """The config as config.json has it; weights in other files say themselves how they lie."""
    if contents.kind == CHECKPOINT:
        return contents.config
    return {key: value for key, value in contents.config.items() if key != "quantization_config"}


def _tensor(change: Change, naming: Naming) -> LogicalTensor:
    layout, dtype, settled = change.layout, change.dtype, change.settled and not change.options
    if layout and layout.grid in GGML_TYPES and naming.block_of(change.name) is None:
        dtype, layout = layout.grid, None  # outside blocks a file's types are dtypes
    return LogicalTensor(change.name, change.shape, change.bytes, layout, dtype, settled)
