"""Which linears of a model in a GGUF file are stored in blocks. No torch.

No config says it: the types stand in the file's header, and formats.headers puts what
`quantization_config` gives in the config of a model that lies in such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.artifact import JsonObject
from llmopt.errors import RequestError
from llmopt.formats.gguf.restore import BLOCKS
from llmopt.model.layout import Layout, ggml_layout
from llmopt.specs.formats import GGUF
from llmopt.specs.ggml import GGML_TYPES

METHOD = GGUF


@dataclass(frozen=True, kw_only=True)
class GgufQuantization:
    """types: of every linear in blocks, by module."""

    types: Mapping[str, str]
    format = GGUF
    suffixes = (BLOCKS,)
    required = (BLOCKS,)
    marker = BLOCKS

    def layer(self, module: str) -> Layout | None:
        """The layout of a linear; None where it is plain."""
        found = self.types.get(module)
        return None if found is None else ggml_layout(found)

    def shape(self, layout: Layout, parts: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """(outputs, inputs) of a linear whose blocks have this shape in bytes."""
        rows, size = parts[BLOCKS]
        spec = GGML_TYPES[layout.grid]
        return rows, size // spec.nbytes * spec.block


def described(types: Mapping[str, str]) -> JsonObject:
    """What `parse` reads, for a config in memory."""
    return {"quant_method": METHOD, "types": dict(types)}


def parse(stored: Mapping[str, Any]) -> GgufQuantization:
    """The settings that `described` gave; RequestError for others, which describe no file."""
    types = stored.get("types")
    if not isinstance(types, Mapping) or any(type_ not in GGML_TYPES for type_ in types.values()):
        raise RequestError("config.json says the model is in a GGUF file, but there is none")
    return GgufQuantization(types=types)
