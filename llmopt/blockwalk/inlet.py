"""What an operation sees of a model: linears that share an input, and what flows into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from llmopt.blockwalk.sink import PartResults
from llmopt.errors import LlmoptError, RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.codec import decode
from llmopt.grids.base import Quantized, QuantizedTensor
from llmopt.grids.ggml import BlockTensor
from llmopt.linalg import InputStatistics, MeanSquares

#: called with a module's name and its new weight, in the checkpoint's orientation
OnReplace = Callable[[str, Tensor], None]


class Inlet:
    """Linears that share an input.

    names: the linears' names in the checkpoint. statistics: of the input, from calibration
    activations that passed through all that was changed before; None in a walk without data.
    cold: of an expert that few tokens reached, whose statistics are those of all experts.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        weights: LiveWeights,
        statistics: InputStatistics | None,
        on_replace: OnReplace,
        device: torch.device,
        cold: MeanSquares | None = None,
    ) -> None:
        self.names = names
        self.statistics = statistics
        self._weights = weights
        self._on_replace = on_replace
        self._device = device
        self._cold = cold

    @property
    def squares(self) -> MeanSquares | None:
        """Of the tokens that reached these very linears; None in a walk without data."""
        if self._cold is not None or self.statistics is None:
            return self._cold
        return self.statistics.squares

    def weight(self, name: str) -> Tensor:
        """The present weight of a linear, float32 [out, in], in memory of its own."""
        weight = self._weights.oriented(name, self._weights.read(f"{name}.weight"))
        return weight.to(self._device, torch.float32).contiguous()

    def replace(
        self,
        name: str,
        value: Quantized | Tensor,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a linear a new weight [out, in]; from here on the block computes with it.

        A plain tensor is rounded to the checkpoint's dtype. `record` (JSON values) is kept with
        the result and returned by the walk, in a resumed one, too.
        """
        if name not in self.names:
            raise LlmoptError(f"{name} is not one of the linears {', '.join(self.names)}")
        self._on_replace(name, self._weights.replace(name, value))
        if record is not None:
            self._weights.results.records[name] = dict(record)


class Operation(Protocol):
    """Something done to every inlet of a model, in the order of computation."""

    needs_statistics: bool

    def apply(self, inlet: Inlet) -> None:
        """Read the inlet's weights and statistics, and replace what should change."""


class LiveWeights:
    """The present weights of one block: those of the checkpoint, but for what was replaced."""

    def __init__(self, checkpoint: Checkpoint, results: PartResults) -> None:
        self._checkpoint = checkpoint
        self.results = results

    def read(self, name: str) -> Tensor:
        """A tensor in the checkpoint's orientation, decoded, in memory of its own."""
        module, checkpoint = name.removesuffix(".weight"), self._checkpoint
        if module in self.results.quantized:
            return self.oriented(module, decode(self.results.quantized[module]))
        if name in self.results.dense:
            return self.results.dense[name].clone()
        if module in checkpoint.layers:
            return self.oriented(module, decode(checkpoint.read_layer(module)))
        if module == checkpoint.naming.head and checkpoint.tied:
            name = f"{checkpoint.naming.embedding}.weight"
        return checkpoint.read(name)

    def hold(self, name: str, value: Tensor) -> None:
        """Give a tensor a new value, which may be finer than the checkpoint's dtype for now."""
        self.results.dense[name] = value.contiguous()

    def settle(self) -> Iterator[tuple[str, Tensor]]:
        """Round what is still finer than the checkpoint's dtype; yields what that changed."""
        for name, value in list(self.results.dense.items()):
            rounded = narrowed(name, value, self._checkpoint.stored_dtype(name)).cpu().contiguous()
            if rounded.dtype != value.dtype:
                self.results.dense[name] = rounded
                yield name, rounded

    def has(self, name: str) -> bool:
        """Whether the checkpoint has such a tensor."""
        return name in self._checkpoint.stored

    def replace(self, module: str, value: Quantized | Tensor) -> Tensor:
        """Note a new weight [out, in]; returns it as the checkpoint would hold it."""
        name = f"{module}.weight"
        if isinstance(value, QuantizedTensor | BlockTensor):
            self.results.dense.pop(name, None)
            self.results.quantized[module] = value
            return self.oriented(module, decode(value))
        self.results.quantized.pop(module, None)
        weight = narrowed(name, self.oriented(module, value), self._checkpoint.dense_dtype)
        self.results.dense[name] = weight.cpu().contiguous()
        return self.results.dense[name]

    def oriented(self, module: str, weight: Tensor) -> Tensor:
        """Between [out, in] and the checkpoint's orientation: Conv1D linears are transposed."""
        transposed = self._checkpoint.family.conv1d and module != self._checkpoint.naming.head
        return weight.T if transposed else weight


def narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor's value in the dtype that it is stored in; RequestError where that is infinite."""
    rounded = value.to(dtype)
    if not bool(rounded.isfinite().all()):
        stored = str(dtype).removeprefix("torch.")
        raise RequestError(
            f"{name} gets values outside {stored}, which it is stored in",
            hint="a source in bfloat16 or float32 holds larger ones, "
            "and without a transform it stays as it is",
        )
    return rounded
