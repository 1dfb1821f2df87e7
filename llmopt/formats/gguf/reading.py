"""A tensor of a GGUF file as the model has it: decoded, rows in the model's order."""

from __future__ import annotations

import torch
from torch import Tensor

from llmopt.formats.gguf.order import Rearrangement, inverse
from llmopt.grids import ggml
from llmopt.specs.ggml import GGML_TYPES


def decoded(raw: Tensor, type_id: str, shape: tuple[int, ...]) -> Tensor:
    """uint8 [n] as a tensor of the shape that the file gives it, float32 where it was in blocks."""
    spec = GGML_TYPES[type_id]
    rows = raw.reshape(-1, shape[-1] // spec.block * spec.nbytes)
    return ggml.decode(type_id, rows).reshape(shape)


def undone(value: Tensor, arranged: Rearrangement) -> Tensor:
    """A tensor of the file with rows and values as in the model."""
    if arranged.order is not None:
        value = value[torch.tensor(inverse(arranged.order))]
    if arranged.offset:
        value = (value.float() - arranged.offset).to(value.dtype)
    return value.T.contiguous() if arranged.transposed else value
