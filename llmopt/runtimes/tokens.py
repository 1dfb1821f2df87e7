"""What every engine does with tokens before and after the model."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.errors import RequestError


def check_tokens(tokens: Tensor, context: int | None, vocabulary: int) -> None:
    """RequestError where tokens int64 [batch, length] do not fit a context or a vocabulary."""
    length, largest = tokens.shape[-1], int(tokens.max())
    if context is not None and length > context:
        raise RequestError(f"{length} tokens do not fit the model's context of {context}")
    if largest >= vocabulary or int(tokens.min()) < 0:
        raise RequestError(
            f"token id {largest} is outside the model's vocabulary of {vocabulary}",
            hint="use the tokenizer that belongs to the model",
        )


def choose(scores: Tensor, temperature: float, generator: torch.Generator) -> int:
    """The next token for logits [vocabulary]: drawn, or at temperature 0 the likeliest."""
    if temperature == 0:
        return int(scores.argmax())
    chances = (scores.float().cpu() / temperature).softmax(-1)
    return int(torch.multinomial(chances, 1, generator=generator))
