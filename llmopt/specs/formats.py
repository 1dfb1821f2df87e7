"""Container layouts."""

from __future__ import annotations

from llmopt.specs.base import FormatSpec

_INTS = frozenset({"int2", "int3", "int4", "int8"})

FORMATS: dict[str, FormatSpec] = {
    "gptq": FormatSpec(
        id="gptq",
        module="llmopt.formats.gptq",
        summary="AutoGPTQ / GPTQModel checkpoint, version 1 (stores zero point - 1)",
        grids=_INTS,
        in_multiple=32,
        out_multiple=32,
        min_zero=1,
        version="gptq",
    ),
    "gptq_v2": FormatSpec(
        id="gptq_v2",
        module="llmopt.formats.gptq",
        summary="GPTQModel checkpoint, version 2 (stores the zero point)",
        grids=_INTS,
        in_multiple=32,
        out_multiple=32,
        version="gptq_v2",
    ),
}
