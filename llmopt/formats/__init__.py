"""Containers: how models lie on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the tables name is held to its Protocol
    from llmopt.formats import (
        awq,
        awq_config,
        bitsandbytes,
        bitsandbytes_config,
        checkpoint_kind,
        compressed_tensors,
        compressed_tensors_config,
        fp8,
        fp8_config,
        gptq,
        gptq_config,
    )
    from llmopt.formats.codec import Codec
    from llmopt.formats.config import ConfigReader, ConfigWriter
    from llmopt.formats.gguf import codec as gguf_codec
    from llmopt.formats.gguf import kind as gguf_kind
    from llmopt.formats.gguf import quantization as gguf_config
    from llmopt.formats.kind import FileKind, Kind
    from llmopt.grids.base import QuantizedTensor
    from llmopt.grids.ggml import BlockTensor

    _KINDS: tuple[Kind, FileKind] = (checkpoint_kind, gguf_kind)
    _BLOCKS: type[Codec[BlockTensor]] = gguf_codec.Codec
    _INTEGERS: tuple[type[Codec[QuantizedTensor]], ...] = (
        awq.Codec,
        bitsandbytes.Codec,
        compressed_tensors.Codec,
        fp8.Codec,
        gptq.Codec,
    )
    _READERS: tuple[ConfigReader, ...] = (fp8_config, gguf_config)
    _WRITERS: tuple[ConfigWriter, ...] = (
        awq_config,
        bitsandbytes_config,
        compressed_tensors_config,
        gptq_config,
    )
