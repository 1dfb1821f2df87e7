"""The transformers model of a checkpoint, without its weights."""

from __future__ import annotations

import torch
from torch import nn

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.experts import unfuse
from llmopt.formats.transformers_config import using_config
from llmopt.pretrained import model_config, model_of


def empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The text model with its parameters on the meta device, of `dtype`, and its buffers real.

    transformers builds it from the config, so attention, masks and rotary embeddings are the
    model's own; no code that comes with a checkpoint is run. Experts are modules of plain linears.
    RequestError where transformers can make none of the config.
    """
    from accelerate import init_empty_weights

    settings = checkpoint.family.language_config(checkpoint.config)
    with using_config(), init_empty_weights(include_buffers=False):
        config = model_config(settings)
        model: nn.Module = model_of(config, dtype=dtype, attention=checkpoint.family.attention)
    unfuse(model, checkpoint.family)
    return model.eval()
