"""What every engine does with tokens before and after the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmopt.errors import LlmoptError, RequestError
from llmopt.runtimes.base import Sampling


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


def refuse_nan(_seen: Tensor, scores: Tensor) -> Tensor:
    """Scores as they are; LlmoptError for NaN. A logits processor of transformers, too."""
    if bool(scores.isnan().any()):
        raise LlmoptError("the model computes NaN, of which no token can be chosen")
    return scores


class Chooser:
    """Chooses the tokens after a prompt, one after another, by transformers' own rules."""

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        self._processors = _processors(sampling)
        self._draws = sampling.temperature > 0
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._seen = torch.tensor([prompt], dtype=torch.int64)

    def __call__(self, scores: Tensor) -> int:
        """The next token for logits [vocabulary]."""
        refuse_nan(self._seen, scores)
        if not self._processors:
            return int(scores.argmax())
        rows = scores.float().cpu()[None]
        for process in self._processors:
            rows = process(self._seen, rows)
        row = rows[0]
        if self._draws:
            token = int(torch.multinomial(row.softmax(-1), 1, generator=self._generator))
        else:
            token = int(row.argmax())
        self._seen = torch.cat([self._seen, torch.tensor([[token]])], dim=1)
        return token


def _processors(sampling: Sampling) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """In the order of transformers' generate: the penalty, the temperature, what is cut off."""
    from transformers.generation import logits_process as rules

    found: list[Callable[[Tensor, Tensor], Tensor]] = []
    if sampling.repetition_penalty != 1.0:
        found.append(rules.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return found
    found.append(rules.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        found.append(rules.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None:
        found.append(rules.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        found.append(rules.MinPLogitsWarper(sampling.min_p))
    return found
