"""The weights of a block while passes work on it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmopt.blockwalk.sink import PartResults
from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.grids.base import Quantized, QuantizedTensor
from llmopt.grids.ggml import BlockTensor


class LiveWeights:
    """The present weights of one block: those of the checkpoint, but for what was replaced."""

    def __init__(self, checkpoint: Checkpoint, results: PartResults | None = None) -> None:
        self.checkpoint = checkpoint
        self.results = results or PartResults()

    @property
    def changed(self) -> bool:
        """Whether anything was replaced."""
        return bool(self.results.quantized or self.results.dense)

    def read(self, name: str) -> Tensor:
        """A tensor in the checkpoint's orientation, decoded, in memory of its own."""
        module = name.removesuffix(".weight")
        if module in self.results.quantized:
            return self.oriented(module, decode(self.results.quantized[module]))
        if name in self.results.dense:
            return self.results.dense[name].clone()
        return self.original(name)

    def original(self, name: str) -> Tensor:
        """The same as the checkpoint has it."""
        module, checkpoint = name.removesuffix(".weight"), self.checkpoint
        if module in checkpoint.layers:
            return self.oriented(module, decode(checkpoint.read_layer(module)))
        if module == checkpoint.naming.head and checkpoint.tied:
            name = f"{checkpoint.naming.embedding}.weight"
        return checkpoint.read(name)

    def rows(self, name: str, wanted: Tensor) -> Tensor:
        """Some rows of a matrix as the checkpoint has it, int64 [n] in ascending order."""
        if name.removesuffix(".weight") in self.checkpoint.layers:
            return self.original(name)[wanted]
        return self.checkpoint.rows(name, wanted)

    def pieces(self, module: str, size: int) -> Iterator[Tensor]:
        """A linear's weight [out, in], some rows of about `size` elements at a time.

        Read row by row where it is as in the checkpoint and lies there so.
        """
        checkpoint, name = self.checkpoint, f"{module}.weight"
        if module == checkpoint.naming.head and checkpoint.tied:
            name = f"{checkpoint.naming.embedding}.weight"
        plain = module not in checkpoint.layers and module not in self.results.quantized
        whole = checkpoint.naming.transposed(module)
        if plain and not whole and name not in self.results.dense:
            yield from checkpoint.pieces(name, max(1, size // checkpoint.stored[name].shape[-1]))
            return
        weight = self.oriented(module, self.read(f"{module}.weight"))
        yield from torch.split(weight, max(1, size // weight.shape[1]))

    def has(self, name: str) -> bool:
        """Whether the checkpoint has such a tensor."""
        return name in self.checkpoint.stored

    def replace(self, module: str, value: Quantized | Tensor) -> None:
        """Give a linear a new weight [out, in].

        A plain one may be finer than the checkpoint's dtype until `settle`.
        """
        if isinstance(value, QuantizedTensor | BlockTensor):
            self.results.dense.pop(f"{module}.weight", None)
            self.results.quantized[module] = value
            return
        self.results.quantized.pop(module, None)
        self.hold(f"{module}.weight", self.oriented(module, value))

    def hold(self, name: str, value: Tensor) -> None:
        """Give a tensor a new value, which may be finer than the checkpoint's dtype for now."""
        self.results.dense[name] = value.contiguous()

    def replaced(self, name: str) -> Tensor:
        """What a tensor was replaced by, in the checkpoint's orientation; not to be written to."""
        if name in self.results.dense:
            return self.results.dense[name]
        module = name.removesuffix(".weight")
        return self.oriented(module, decode(self.results.quantized[module]))

    def settle(self) -> Iterator[str]:
        """Round what is still finer than the checkpoint's dtype; yields what that changed."""
        for name, value in list(self.results.dense.items()):
            rounded = self.narrowed(name, value).cpu().contiguous()
            self.results.dense[name] = rounded
            if rounded.dtype != value.dtype:
                yield name

    def narrowed(self, name: str, value: Tensor) -> Tensor:
        """A value in the dtype that its tensor is stored in; RequestError where it is infinite."""
        dtype = self.checkpoint.stored_dtype(name)
        rounded = value.to(dtype)
        if not bool(rounded.isfinite().all()):
            stored = str(dtype).removeprefix("torch.")
            raise RequestError(
                f"{name} gets values outside {stored}, which it is stored in",
                hint="a source in bfloat16 or float32 holds larger ones, "
                "and without a transform it stays as it is",
            )
        return rounded

    def oriented(self, module: str, weight: Tensor) -> Tensor:
        """Between [out, in] and the checkpoint's orientation."""
        return weight.T if self.checkpoint.naming.transposed(module) else weight
