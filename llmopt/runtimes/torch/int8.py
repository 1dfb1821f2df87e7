"""Linears of int8 weights and int8 activations, computed in integers by torch on the CPU.

The product is torch._int_mm, s8 x s8 to s32, which torch's own quantization (torchao) computes
dynamic int8 with. torch.ao's eager modules and torch.ops.quantized.linear_dynamic take quantized
tensors, which torch 2.13 announces to remove, and round a whole batch with one scale, so that what
a token gives depends on its neighbours. Here each token has its own scale
(runtimes.torch.activations). Products are summed without rounding, so this is the artifact's
function to float32's last digits, and serves measurements of quality as well as generation. It
reads a quarter of the bytes of a float32 weight. CPUs without VNNI have no fast product of this
kind and compute the same function with QuantizedLinear.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from llmopt import processor
from llmopt.grids.base import QuantizedTensor
from llmopt.runtimes.torch.activations import token_levels

#: inputs whose products, of up to 128 * 128 each, an int32 surely holds the sum of
_MOST_INPUTS = (2**31 - 1) // 128**2


class Int8Linear(nn.Module):
    """y = (rounded x) W^T + bias for x [..., in], in x's dtype.

    Only for tensors of which `fits_int8` says so, on the CPU.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, tensor: QuantizedTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = tensor.codes.shape
        self._keep("weight", (tensor.codes.to(torch.int16) - 128).to(torch.int8))
        self._keep("scale", tensor.params.scale.flatten())
        self._keep("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = token_levels(x.reshape(-1, self.in_features), "int8")
        y = _product(levels, self.weight).float().mul_(self.scale).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def tensors(self) -> list[Tensor]:
        """Everything that the layer keeps in memory."""
        return list(self.buffers())

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)


def fits_int8(tensor: QuantizedTensor) -> bool:
    """Whether for this weight, on this CPU, the integer product is exact and fast."""
    params = tensor.params
    rows_alone = params.scale.shape[1] == 1 and bool((params.zero == 128).all())
    in_range = tensor.codes.shape[1] <= _MOST_INPUTS
    return (
        tensor.activations == tensor.grid == "int8"
        and rows_alone
        and in_range
        and computes_in_integers()
    )


def computes_in_integers() -> bool:
    """Whether this CPU's integer product is fast, and exact."""
    return processor.fast_int8() and kernel_is_exact()


@cache
def kernel_is_exact() -> bool:
    """Whether this CPU's kernel adds the largest products without saturating.

    CPUs without VNNI move activations to 0 to 255 and add pairs of products in 16 bits, too few.
    """
    levels = torch.full((2, 64), 127.0)
    levels[1] = -128.0
    weight = torch.full((16, 64), -128, dtype=torch.int8)
    weight[1] = 127
    return torch.equal(_product(levels, weight), (levels @ weight.float().T).int())


def _product(levels: Tensor, weight: Tensor) -> Tensor:
    """int32 [rows, out]: levels [rows, in], whole numbers, times weight int8 [out, in]."""
    product: Tensor = torch._int_mm(levels.to(torch.int8), weight.T)
    return product
