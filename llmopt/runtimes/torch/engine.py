"""A transformers model as an engine: logits of the exact function, and fast generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.errors import RequestError
from llmopt.runtimes.tokens import check_tokens, choose
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
        temperature: float = 0.0,
        seed: int = 0,
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
        generator = torch.Generator().manual_seed(seed)
        return self._stream(tokens, max_new_tokens, temperature, generator, end_tokens)

    def _stream(
        self,
        tokens: Tensor,
        count: int,
        temperature: float,
        generator: torch.Generator,
        end_tokens: frozenset[int],
    ) -> Iterator[int]:
        cache = None
        for _ in range(count):
            scores, cache = self._step(tokens.to(self._device), cache)
            token = choose(scores, temperature, generator)
            if token in end_tokens:
                return
            yield token
            tokens = torch.tensor([[token]], dtype=torch.int64)

    def _step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The last position's logits [vocabulary] and the cache with `tokens` in it."""
        self._switch.fast = True
        try:
            with torch.inference_mode():
                output = self._model(
                    input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1
                )
        finally:
            self._switch.fast = False
        return output.logits[0, -1], output.past_key_values
