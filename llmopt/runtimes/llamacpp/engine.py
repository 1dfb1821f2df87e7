"""A GGUF model in llama.cpp as an engine."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.runtimes.base import GREEDY, Sampling
from llmopt.runtimes.llamacpp.handles import LlamaContext, LoadedModel
from llmopt.runtimes.tokens import Chooser, check_tokens


class LlamaCppEngine:
    """The same file, device and number of threads give the same logits, bit for bit.

    `logits` has a float32 KV cache and attention without flash attention. What llama.cpp's
    kernels do stays: beside quantized weights they round activations to 8 bits, beside float16
    ones to float16.
    """

    def __init__(self, weights: LoadedModel, *, threads: int) -> None:
        self._weights = weights
        self._threads = threads
        self._exact: LlamaContext | None = None
        self._fast: LlamaContext | None = None

    @property
    def vocabulary(self) -> int:
        return self._weights.vocabulary

    @property
    def context(self) -> int | None:
        return self._weights.context

    @property
    def weight_bytes(self) -> int:
        return self._weights.nbytes

    def logits(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.context, self.vocabulary)
        length = tokens.shape[1]
        if self._exact is None or self._exact.length != length:
            self._exact = None  # frees before the next is allocated
            self._exact = LlamaContext(self._weights, length, threads=self._threads, exact=True)
        rows = []
        for row in tokens.tolist():
            self._exact.clear()
            rows.append(self._exact.logits(row))
        return torch.stack(rows)

    def generate(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        ignore_end: bool = False,
    ) -> Iterator[int]:
        if sampling.beams > 1:
            raise RequestError("llama.cpp has no beam search", hint="--runtime torch has")
        if not prompt:
            raise RequestError("an empty prompt cannot be continued")
        check_tokens(torch.tensor([prompt]), self.context, self.vocabulary)
        count = min(max_new_tokens, self._weights.context - len(prompt))
        return self._stream(prompt, count, Chooser(sampling, prompt), ignore_end)

    def _stream(
        self, tokens: list[int], count: int, choose: Chooser, ignore_end: bool
    ) -> Iterator[int]:
        context = self._borrow(len(tokens) + count)
        try:
            for _ in range(count):
                token = choose(context.last_logits(tokens))
                if not ignore_end and self._weights.ends(token):
                    return
                yield token
                tokens = [token]
        finally:
            self._fast = context

    def _borrow(self, length: int) -> LlamaContext:
        """An empty context for at least `length` tokens; streams that overlap have their own."""
        context, self._fast = self._fast, None
        if context is None or context.length < length:
            return LlamaContext(self._weights, length, threads=self._threads, exact=False)
        context.clear()
        return context
