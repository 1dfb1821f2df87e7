"""Linears of int8 weights and int8 activations, computed in integers by torch's CPU kernel.

The kernel is the one that torch.export's quantization lowers to (oneDNN, u8 x s8): torch.ao's eager
modules and torch.ops.quantized.linear_dynamic, as fast, take quantized tensors, which torch 2.13
announces to remove, and round a whole batch with one scale, so that what a token gives depends on
its neighbours. Here each token has its own scale (runtimes.torch.activations). Products are summed
in int32 without rounding, so this is the artifact's function to float32's last digits, and serves
measurements of quality as well as generation. It reads a quarter of the bytes of a float32 weight.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from llmopt.grids.base import QuantizedTensor
from llmopt.runtimes.torch.activations import token_levels

#: the kernel wants activations without a sign: levels are moved by this, which is their zero point
_MIDDLE = 128


class Int8Linear(nn.Module):
    """y = (rounded x) W^T + bias for x [..., in], in x's dtype.

    Only for tensors of which `fits_int8` says so, on the CPU.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, tensor: QuantizedTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = tensor.codes.shape
        weight = (tensor.codes.to(torch.int16) - 128).to(torch.int8)
        self._keep("packed", _packed(weight))
        self._keep("scale", tensor.params.scale.flatten())
        self._keep("zero", torch.zeros(self.out_features, dtype=torch.int32))
        self._keep("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        levels, scale = token_levels(x.reshape(-1, self.in_features), "int8")
        y = _product(levels, self.packed, self.scale, self.zero).mul_(scale)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def tensors(self) -> list[Tensor]:
        """Everything that the layer keeps in memory."""
        return list(self.buffers())

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)


def fits_int8(tensor: QuantizedTensor) -> bool:
    """Whether a weight and this machine's CPU are such that the integer product is exact."""
    params = tensor.params
    rows_alone = params.scale.shape[1] == 1 and bool((params.zero == 128).all())
    return tensor.activations == tensor.grid == "int8" and rows_alone and _kernel_is_exact()


@cache
def _kernel_is_exact() -> bool:
    """Whether there is a kernel, and it adds the largest products without saturating.

    CPUs without VNNI add pairs of products in 16 bits, which overflow.
    """
    levels = torch.full((2, 64), 127.0)
    levels[1] = -127.0
    weight = torch.full((16, 64), -128, dtype=torch.int8)
    weight[1] = 127
    ones, zero = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    try:
        found = _product(levels, _packed(weight), ones, zero)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.equal(found, levels @ weight.float().T)


def _packed(weight: Tensor) -> Tensor:
    """int8 [out, in] in the kernel's layout, which belongs to the CPU at hand."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.T, None)
    return packed


def _product(levels: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """float32 [rows, out]: levels [rows, in], whole numbers, times the weight of these scales."""
    shifted = (levels + _MIDDLE).to(torch.uint8)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, _MIDDLE, packed, scale, zero, None,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return product
