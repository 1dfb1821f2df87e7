"""The weights of a checkpoint as a GGUF file has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.order import Arrangement
from llmopt.formats.gguf.writer import Source
from llmopt.formats.headers import TensorHeader
from llmopt.grids.ggml import encode

#: weights that are converted at once: few enough to stay in the cache of a processor
_PIECE = 1 << 20


def sources(checkpoint: Checkpoint, placement: Placement) -> Iterator[Tensor]:
    """Each source's weight as float32, rows and values as in the file: [rows, cols], or [n]."""
    if not placement.sources:
        yield torch.tensor(placement.values, dtype=torch.float32)
    for name in placement.sources:
        yield arranged(_read(checkpoint, placement, name).float(), placement)


def arranged(weight: Tensor, placement: Placement) -> Tensor:
    """A weight of the model, [out, in] or [n], with rows and values as in the file."""
    if placement.order is not None:
        weight = weight[torch.tensor(placement.order, device=weight.device)]
    return weight + placement.offset if placement.offset else weight


def nearest(checkpoint: Checkpoint, placement: Placement, type_id: str) -> Source:
    """What to write for a placement whose weights are to be rounded to the nearest values.

    Byte ranges to copy where the checkpoint has the very bytes, else pieces encoded when they are
    asked for, without importance; RequestError then where the type cannot hold the weights.
    """
    return unchanged(checkpoint, placement, type_id) or _encoder(checkpoint, placement, type_id)


def unchanged(
    checkpoint: Checkpoint, placement: Placement, type_id: str
) -> list[TensorHeader] | None:
    """Where the bytes of a placement lie as they are, None where they have to be made."""
    wanted = Arrangement(
        order=placement.order, offset=placement.offset, transposed=placement.transposed
    )
    found = [checkpoint.stored.get(name) for name in placement.sources]
    headers = [tensor.header for tensor in found if tensor is not None]
    same = all(h.dtype == type_id and (h.arranged or Arrangement()) == wanted for h in headers)
    return headers if found and len(headers) == len(found) and same else None


def _encoder(
    checkpoint: Checkpoint, placement: Placement, type_id: str
) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        if not placement.sources:
            yield _bytes(encode(type_id, torch.tensor([placement.values])))
        for name in placement.sources:
            weight = arranged(_read(checkpoint, placement, name), placement)
            rows = weight.reshape(-1, weight.shape[-1])
            for some in torch.split(rows, max(1, _PIECE // rows.shape[1])):
                yield _bytes(encode(type_id, some.float()))

    return pieces


def _read(checkpoint: Checkpoint, placement: Placement, name: str) -> Tensor:
    """[out, in] or [n], in the dtype that is stored; float32 where it is decoded."""
    module = name.removesuffix(".weight")
    if module in checkpoint.layers:
        return checkpoint.weight(module)
    weight = checkpoint.read(name)
    return weight.T if placement.transposed else weight


def _bytes(data: Tensor) -> memoryview:
    return data.contiguous().view(torch.uint8).numpy().data.cast("B")
