"""An architecture that nothing knows: transformers is told of it, llmopt is not.

Its blocks are of two kinds, with names that no other has, and a gain of 1 + w in its norms.
"""

from __future__ import annotations

import torch
from made_up_config import MadeUpConfig
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Mixer(nn.Module):
    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.to_all = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.back = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for part in self.to_all(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.back(mixed.transpose(1, 2).reshape(x.shape))


class Wide(nn.Module):
    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.open = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.valve = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.close = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.close(self.open(x) * torch.tanh(self.valve(x)))


class Stage(nn.Module):
    """Every other one has no attention, but a running mean."""

    def __init__(self, config: MadeUpConfig, index: int) -> None:
        super().__init__()
        self.first, self.second = Gain(config.hidden_size), Gain(config.hidden_size)
        self.mixer = Mixer(config) if index % 2 == 0 else None
        self.mean = None if index % 2 == 0 else nn.Linear(config.hidden_size, config.hidden_size)
        self.wide = Wide(config)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        y = self.first(x)
        if self.mixer is not None:
            x = x + self.mixer(y)
        else:
            assert self.mean is not None
            x = x + self.mean(y).cumsum(1) / places
        return x + self.wide(self.second(x))


class MadeUpModel(PreTrainedModel):
    config_class = MadeUpConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stages = nn.ModuleList(
            Stage(config, index) for index in range(config.num_hidden_layers)
        )
        self.last = Gain(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, **_: object) -> BaseModelOutput:
        x = self.words(input_ids)
        places = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        for stage in self.stages:
            x = stage(x, places)
        return BaseModelOutput(last_hidden_state=self.last(x))


class MadeUpForCausalLM(PreTrainedModel):
    config_class = MadeUpConfig
    base_model_prefix = "trunk"
    _supports_sdpa = True

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.trunk = MadeUpModel(config)
        self.speak = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.words

    def get_output_embeddings(self) -> nn.Module:
        return self.speak

    def forward(self, input_ids: Tensor | None = None, **given: object) -> CausalLMOutput:
        hidden = self.trunk(input_ids=input_ids, **given).last_hidden_state
        return CausalLMOutput(logits=self.speak(hidden))


AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
