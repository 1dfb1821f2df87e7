"""A linear layer that keeps its weight as packed integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmopt.grids.base import Grid, QuantizedTensor
from llmopt.runtimes.torch.activations import round_tokens
from llmopt.runtimes.torch.int4 import Int4Product, int4_product
from llmopt.specs import GRIDS, load, lookup

#: "each" decodes the weight in every forward, "once" keeps the decoded weight too
Decode = Literal["each", "once"]

# From here on one decode and a dense product is faster than the packed product.
_FEW_ROWS = 32
_ELEMENTS_AT_ONCE = 1 << 20  # weights decoded together, so that float32 copies stay small
_CODES_IN_BYTE = {2: 4, 3: 2, 4: 2, 8: 1}


@dataclass
class KernelSwitch:
    """Shared by the layers of one model: whether fast, slightly inexact products may be used."""

    fast: bool = False


class QuantizedLinear(nn.Module):
    """y = x W^T + bias, W [out, in] decoded from integers exactly, then rounded to `dtype`.

    x is [..., in], and is first rounded token by token where the tensor says so. Stands for
    nn.Linear and for transformers' Conv1D alike. While `switch.fast`, products of a few rows on the
    CPU use the packed kernel, which `prepare` makes ready.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_index: Tensor | None
    bias: Tensor | None
    decoded: Tensor | None

    def __init__(
        self,
        tensor: QuantizedTensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        switch: KernelSwitch,
        decode: Decode = "each",
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = tensor.codes.shape
        self.dtype = dtype
        self._switch = switch
        self._grid: Grid = load(lookup(GRIDS, "grid", tensor.grid).module)
        self._activations = tensor.activations
        self._id, self._params = tensor.grid, replace(tensor.params, group_index=None)
        self._product: Int4Product | None = None
        self._keep("codes", pack_codes(tensor.codes, tensor.params.bits))
        self._keep("scale", tensor.params.scale.to(getattr(torch, tensor.params.scale_dtype)))
        self._keep("zero", tensor.params.zero.to(torch.uint8))
        self._keep("group_index", tensor.params.group_index)
        self._keep("bias", None if bias is None else bias.to(dtype))
        self._keep("decoded", self._decode() if decode == "once" else None)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if self._switch.fast and self._product is not None and rows <= _FEW_ROWS:
            y = self._product(x.reshape(rows, -1)).view(*x.shape[:-1], self.out_features)
            return y if self.bias is None else y + self.bias
        if self._activations is not None:
            x = round_tokens(x, self._activations)
        weight = self._decode() if self.decoded is None else self.decoded
        return F.linear(x, weight, self.bias)

    def prepare(self) -> None:
        """Pack the weight for the fast kernel, where it has one."""
        exact_inputs = self._activations is None
        if exact_inputs and self._product is None and self.codes.device.type == "cpu":
            self._product = int4_product(self.tensor())

    def tensor(self) -> QuantizedTensor:
        """The weight as it came."""
        return self._slice(slice(None))

    def tensors(self) -> list[Tensor]:
        """Everything that the layer keeps in memory."""
        return [*self.buffers(), *(self._product.tensors if self._product else [])]

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    def _slice(self, rows: slice) -> QuantizedTensor:
        params = replace(
            self._params,
            scale=self.scale[rows].float(),
            zero=self.zero[rows].to(torch.int32),
            group_index=self.group_index,
        )
        codes = unpack_codes(self.codes[rows], params.bits, self.in_features)
        return QuantizedTensor(
            grid=self._id, codes=codes, params=params, activations=self._activations
        )

    def _decode(self) -> Tensor:
        """The weight [out, in] in the computing dtype."""
        weight = torch.empty(
            self.out_features, self.in_features, dtype=self.dtype, device=self.codes.device
        )
        step = max(1, _ELEMENTS_AT_ONCE // self.in_features)
        for start in range(0, self.out_features, step):
            part = self._slice(slice(start, start + step))
            weight[start : start + step] = self._grid.decode(part.codes, part.params)
        return weight


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, cols] several to a byte: column j and j + cols / n share byte j.

    Shares that lie apart unpack as whole runs, faster than neighbours would.
    """
    shares = _CODES_IN_BYTE[bits]
    if shares == 1 or codes.shape[1] % shares:
        return codes.contiguous()
    packed = torch.zeros_like(codes[:, : codes.shape[1] // shares])
    for index, part in enumerate(codes.chunk(shares, dim=1)):
        packed |= part << (index * 8 // shares)
    return packed


def unpack_codes(packed: Tensor, bits: int, cols: int) -> Tensor:
    """What `pack_codes` was given: uint8 [rows, cols]."""
    shares = cols // packed.shape[1]
    if shares == 1:
        return packed
    width, mask = 8 // shares, 2**bits - 1
    return torch.cat([(packed >> (index * width)) & mask for index in range(shares)], dim=1)
