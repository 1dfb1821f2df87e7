"""One forward of a tiny model, with somebody who looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

#: called with (module, its arguments, its output)
Look = Callable[..., None]


def logits_of(
    model: Any, tokens: Tensor, looks: Mapping[nn.Module, Look] = MappingProxyType({})
) -> Tensor:
    """The logits [batch, length, vocabulary] for int64 [batch, length]; no gradients.

    looks: by module, what is told of each of its calls.
    """
    hooks = [part.register_forward_hook(look) for part, look in looks.items()]
    try:
        with torch.no_grad():
            logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return logits
