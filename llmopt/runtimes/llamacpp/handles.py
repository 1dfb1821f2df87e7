"""A model and a context of llama.cpp, freed when nothing refers to them any more."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.runtimes.llamacpp.native import native

_NO_FLASH_ATTENTION = 0  # llama_flash_attn_type
_F32 = 0  # ggml_type
_ALL_LAYERS = 999
#: tokens of a prompt that are computed together; llama.cpp's own default
_BATCH = 512


class LoadedModel:
    """A loaded file, mapped into memory. gpu: whether all layers are to lie there."""

    def __init__(self, path: Path, *, gpu: bool) -> None:
        lib = native()
        api = lib.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = _ALL_LAYERS if gpu else 0
        # repacked weights: on processors with AMX, quantized ones crash in this llama.cpp
        params.use_extra_bufts = False
        lib.forget()
        pointer = api.llama_model_load_from_file(str(path).encode(), params)
        if not pointer:
            raise LlmoptError(f"llama.cpp cannot load {path.name}: {lib.complaint()}")
        weakref.finalize(self, api.llama_model_free, pointer)
        self.pointer: Any = pointer
        self.name = path.name
        self.gpu = gpu
        self._vocab = api.llama_model_get_vocab(pointer)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(native().api.llama_vocab_n_tokens(self._vocab))

    @property
    def context(self) -> int:
        """How many tokens the model was trained for."""
        return int(native().api.llama_model_n_ctx_train(self.pointer))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return int(native().api.llama_model_size(self.pointer))

    def ends(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(native().api.llama_vocab_is_eog(self._vocab, token))


class LlamaContext:
    """Working memory for `length` tokens: a KV cache that fills from call to call.

    exact: the cache holds float32 and attention is computed step by step, all `length` tokens in
    one go; else what is fast, a float16 cache and prompts in batches.
    """

    def __init__(self, weights: LoadedModel, length: int, *, threads: int, exact: bool) -> None:
        lib = native()
        api = lib.api
        params = api.llama_context_default_params()
        params.n_ctx = length
        params.n_batch = params.n_ubatch = length if exact else min(_BATCH, length)
        params.n_threads = params.n_threads_batch = threads
        params.offload_kqv = params.op_offload = weights.gpu
        if exact:
            params.type_k = params.type_v = _F32
            params.flash_attn_type = _NO_FLASH_ATTENTION
        lib.forget()
        pointer = api.llama_init_from_model(weights.pointer, params)
        if not pointer:
            raise LlmoptError(
                f"llama.cpp has no room to run {weights.name} on {length} tokens: {lib.complaint()}"
            )
        weakref.finalize(self, api.llama_free, pointer)
        self.length = length
        self._batch = int(params.n_batch)
        self._pointer = pointer
        self._weights = weights  # must outlive the context

    def clear(self) -> None:
        """Forget all tokens."""
        api = native().api
        api.llama_memory_clear(api.llama_get_memory(self._pointer), True)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits float32 [len(tokens), vocabulary] of at most `length` tokens in one batch."""
        return self._run(tokens, every=True)

    def last_logits(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens; the logits float32 [vocabulary] of what comes after them."""
        scores = torch.empty(0)
        for start in range(0, len(tokens), self._batch):
            scores = self._run(tokens[start : start + self._batch], every=False)
        return scores[0]

    def _run(self, tokens: Sequence[int], *, every: bool) -> Tensor:
        lib = native()
        api, count = lib.api, len(tokens)
        wanted = (ctypes.c_int8 * count)(*([every] * (count - 1)), 1)
        batch = api.llama_batch(
            n_tokens=count, token=(ctypes.c_int32 * count)(*tokens), logits=wanted
        )
        lib.forget()
        status = api.llama_decode(self._pointer, batch)
        if status:
            raise LlmoptError(
                f"llama.cpp failed on {self._weights.name} (status {status}): {lib.complaint()}"
            )
        shape = (count if every else 1, self._weights.vocabulary)
        found = np.ctypeslib.as_array(api.llama_get_logits(self._pointer), shape=shape)
        return torch.from_numpy(found.copy())
