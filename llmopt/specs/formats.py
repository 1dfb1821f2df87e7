"""Container layouts."""

from __future__ import annotations

from llmopt.specs.base import FormatSpec
from llmopt.specs.ggml import GGML_TYPES

_INTS = frozenset({"int2", "int3", "int4", "int8"})

#: ids of formats, and the words that their configs and files call themselves by
GPTQ_V1, GPTQ_V2, AWQ = "gptq", "gptq_v2", "awq"
COMPRESSED_TENSORS, GGUF = "compressed-tensors", "gguf"
#: what a conversion to it writes is no model, but what calibration text says of one
IMATRIX = "imatrix"
#: a checkpoint of plain tensors, as conversions and manifests call it
PLAIN = "hf"
#: the quant_method of a config that names none: AutoGPTQ was the first to write any
FIRST_METHOD = "gptq"

FORMATS: dict[str, FormatSpec] = {
    "gptq": FormatSpec(
        id="gptq",
        module="llmopt.formats.gptq",
        config_module="llmopt.formats.gptq_config",
        stores_index=True,
        stores_zeros=True,
        repeats_config=True,
        summary="AutoGPTQ / GPTQModel checkpoint, version 1 (stores zero point - 1)",
        grids=_INTS,
        in_multiple=32,
        out_multiple=32,
        min_zero=1,
        version="gptq",
    ),
    "gptq_v2": FormatSpec(
        id="gptq_v2",
        quant_method="gptq",
        module="llmopt.formats.gptq",
        config_module="llmopt.formats.gptq_config",
        stores_index=True,
        stores_zeros=True,
        repeats_config=True,
        summary="GPTQModel checkpoint, version 2 (stores the zero point)",
        grids=_INTS,
        in_multiple=32,
        out_multiple=32,
        version="gptq_v2",
    ),
    "awq": FormatSpec(
        id="awq",
        module="llmopt.formats.awq",
        config_module="llmopt.formats.awq_config",
        stores_zeros=True,
        group_index=False,
        says_symmetric=False,
        quantizes_head=False,
        summary="AutoAWQ checkpoint, version gemm: 4 bits, one group size for the whole model",
        grids=frozenset({"int4"}),
        group_sizes=frozenset({32, 64, 128}),
        out_multiple=8,
    ),
    "compressed-tensors": FormatSpec(
        id="compressed-tensors",
        module="llmopt.formats.compressed_tensors",
        config_module="llmopt.formats.compressed_tensors_config",
        shape_bytes=16,
        any_scale=True,
        summary="llm-compressor / vLLM checkpoint: packed integers, W8A8, FP8, or a mix",
        grids=_INTS | {"fp8"},
        activations=frozenset({"int8", "fp8"}),
        in_multiple=32,
        out_multiple=8,
    ),
    "bitsandbytes-nf4": FormatSpec(
        id="bitsandbytes-nf4",
        module="llmopt.formats.bitsandbytes",
        config_module="llmopt.formats.bitsandbytes_config",
        quant_method="bitsandbytes",
        version="nf4",
        summary="bitsandbytes checkpoint (QLoRA): NormalFloat4 in blocks of 64",
        grids=frozenset({"nf4"}),
        group_sizes=frozenset({64}),
        group_index=False,
        asymmetric=False,
        shape_bytes=64 + 72,  # the table of levels, and JSON
        shape_in_text=True,
        scale_bytes=4,
    ),
    "bitsandbytes-int8": FormatSpec(
        id="bitsandbytes-int8",
        module="llmopt.formats.bitsandbytes",
        config_module="llmopt.formats.bitsandbytes_config",
        quant_method="bitsandbytes",
        version="int8",
        summary="bitsandbytes checkpoint for LLM.int8(): one scale a row",
        grids=frozenset({"int8"}),
        group_sizes=frozenset({-1}),
        shape_bytes=1,  # the order of its values
        scale_bytes=4,
        group_index=False,
        asymmetric=False,
    ),
    "gguf": FormatSpec(
        id="gguf",
        module="llmopt.formats.gguf.codec",
        config_module="llmopt.formats.gguf.quantization",
        kind="gguf",
        fuses=False,
        quantizes_embeddings=True,
        group_index=False,
        summary="GGUF file of llama.cpp, with a preset's mix of types",
        grids=frozenset(GGML_TYPES),
    ),
    "fp8": FormatSpec(
        id="fp8",
        module="llmopt.formats.fp8",
        config_module="llmopt.formats.fp8_config",
        summary="FP8 checkpoint of DeepSeek, transformers or AutoFP8, with block scales: read only",
        grids=frozenset(),
    ),
}
