"""The config of the made-up architecture."""

from __future__ import annotations

from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig


class MadeUpConfig(PretrainedConfig):
    model_type = "made_up"

    vocab_size: int = 128
    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4


AutoConfig.register("made_up", MadeUpConfig)
