"""A transformers model as an engine: logits of the exact function, and fast generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.errors import RequestError
from llmopt.runtimes.base import GREEDY, Sampling
from llmopt.runtimes.tokens import Chooser, check_tokens, refuse_nan
from llmopt.runtimes.torch.int8 import Int8Linear
from llmopt.runtimes.torch.linear import KernelSwitch, QuantizedLinear


class TorchEngine:
    """`unused` names the checkpoint's tensors that belong to no part of the text model."""

    def __init__(
        self,
        model: nn.Module,
        switch: KernelSwitch,
        *,
        end_tokens: frozenset[int] = frozenset(),
        unused: tuple[str, ...] = (),
    ) -> None:
        self.unused = unused
        self._model = model
        self._config: Any = model.config
        self._switch = switch
        self._end_tokens = end_tokens
        self._device = next(model.parameters()).device

    @property
    def vocabulary(self) -> int:
        return int(self._config.vocab_size)

    @property
    def context(self) -> int | None:
        length = getattr(self._config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def weight_bytes(self) -> int:
        tensors: list[Tensor] = list(self._model.parameters())
        for module in self._model.modules():
            if isinstance(module, QuantizedLinear | Int8Linear):
                tensors += module.tensors()
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def logits(self, tokens: Tensor) -> Tensor:
        check_tokens(tokens, self.context, self.vocabulary)
        with torch.inference_mode():
            output = self._model(input_ids=tokens.to(self._device), use_cache=False)
        logits: Tensor = output.logits.float()
        return logits

    def generate(
        self,
        prompt: list[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = GREEDY,
        ignore_end: bool = False,
    ) -> Iterator[int]:
        if not prompt:
            raise RequestError("an empty prompt cannot be continued")
        tokens = torch.tensor([prompt], dtype=torch.int64)
        check_tokens(tokens, self.context, self.vocabulary)
        if self.context is not None:
            max_new_tokens = min(max_new_tokens, self.context - len(prompt))
        for module in self._model.modules():
            if isinstance(module, QuantizedLinear):
                module.prepare()
        end_tokens = frozenset() if ignore_end else self._end_tokens
        if sampling.beams > 1:
            return self._best_beam(tokens, max_new_tokens, sampling, end_tokens)
        return self._stream(tokens, max_new_tokens, Chooser(sampling, prompt), end_tokens)

    def _stream(
        self, tokens: Tensor, count: int, choose: Chooser, end_tokens: frozenset[int]
    ) -> Iterator[int]:
        cache = None
        for _ in range(count):
            scores, cache = self._step(tokens.to(self._device), cache)
            token = choose(scores)
            if token in end_tokens:
                return
            yield token
            tokens = torch.tensor([[token]], dtype=torch.int64)

    def _best_beam(
        self, tokens: Tensor, count: int, sampling: Sampling, end_tokens: frozenset[int]
    ) -> Iterator[int]:
        """All tokens of transformers' own beam search, which come when it is done."""
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=count,
            num_beams=sampling.beams,
            do_sample=False,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=sorted(end_tokens) or None,
            pad_token_id=min(end_tokens, default=0),
        )
        prompt = tokens.to(self._device)
        with self._fast_products(), torch.inference_mode():
            found = self._model.generate(  # type: ignore[operator]
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                logits_processor=[refuse_nan],
            )
        for token in found[0, tokens.shape[1] :].tolist():
            if token in end_tokens:
                return
            yield token

    def _step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The last position's logits [vocabulary] and the cache with `tokens` in it."""
        with self._fast_products(), torch.inference_mode():
            output = self._model(
                input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        return output.logits[0, -1], output.past_key_values

    @contextmanager
    def _fast_products(self) -> Iterator[None]:
        self._switch.fast = True
        try:
            yield
        finally:
            self._switch.fast = False
