"""The weights of a checkpoint as a GGUF file has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.names import Placement
from llmopt.formats.gguf.order import Rearrangement
from llmopt.formats.gguf.writer import Source
from llmopt.formats.tensor_header import TensorHeader
from llmopt.grids.ggml import Search, decode, encode

#: is shown the name of a source, some of its rows [n, cols] as the model has them, in float32 or
#: float64, and the bytes made of them
Watch = Callable[[str, Tensor, Tensor], None]

#: weights that are converted at once: few enough to stay in the cache of a processor
_PIECE = 1 << 20


def arranged(weight: Tensor, placement: Placement) -> Tensor:
    """A weight of the model, [out, in] or [n], with rows as in the file."""
    if placement.order is None:
        return weight
    return weight[torch.tensor(placement.order, device=weight.device)]


def keeps_values(checkpoint: Checkpoint, placement: Placement, type_id: str) -> bool:
    """Whether a type of plain numbers has the weights of a placement, plus its offset."""
    for name in placement.sources:
        for rows in _pieces(checkpoint, placement, name):
            try:
                data = encode(type_id, rows.float() + placement.offset)
            except RequestError:
                return False
            if not torch.equal(decode(type_id, data).double() - placement.offset, rows.double()):
                return False
    return True


def nearest(
    checkpoint: Checkpoint,
    placement: Placement,
    type_id: str,
    search: Search = "best",
    watch: Watch | None = None,
) -> Source:
    """What to write for a placement whose weights are to be rounded to the nearest values.

    Byte ranges to copy where the checkpoint has the very bytes, else pieces encoded when they are
    asked for, without importance, which `watch` is shown; RequestError then where the type cannot
    hold the weights.
    """
    copied = unchanged(checkpoint, placement, type_id)
    return copied or _encoder(checkpoint, placement, type_id, search, watch)


def unchanged(
    checkpoint: Checkpoint, placement: Placement, type_id: str
) -> list[TensorHeader] | None:
    """Where the bytes of a placement lie as they are, None where they have to be made."""
    wanted = Rearrangement(
        order=placement.order, offset=placement.offset, transposed=placement.transposed
    )
    found = [checkpoint.stored.get(name) for name in placement.sources]
    headers = [tensor.header for tensor in found if tensor is not None]
    same = all(h.dtype == type_id and (h.arranged or Rearrangement()) == wanted for h in headers)
    return headers if found and len(headers) == len(found) and same else None


def _encoder(
    checkpoint: Checkpoint,
    placement: Placement,
    type_id: str,
    search: Search,
    watch: Watch | None,
) -> Callable[[], Iterator[memoryview]]:
    def pieces() -> Iterator[memoryview]:
        if not placement.sources:
            yield as_bytes(encode(type_id, torch.tensor([placement.values])))
        for name in placement.sources:
            for rows in _pieces(checkpoint, placement, name):
                values = rows.float()
                shifted = values + placement.offset if placement.offset else values
                try:
                    data = encode(type_id, shifted, None, search)
                except RequestError as error:
                    raise RequestError(f"{name}: {error.message}", hint=error.hint) from None
                if watch is not None:
                    watch(name, rows if rows.dtype == torch.float64 else values, data)
                yield as_bytes(data)

    return pieces


def _pieces(checkpoint: Checkpoint, placement: Placement, name: str) -> Iterator[Tensor]:
    """The weights of a source as rows of the file, some at a time, in the dtype that is stored."""
    stored = checkpoint.stored.get(name)
    if stored and placement.order is None and not placement.transposed and len(stored.shape) > 1:
        yield from checkpoint.pieces(name, max(1, _PIECE // stored.shape[-1]))
        return
    weight = arranged(_read(checkpoint, placement, name), placement)
    matrix = weight.reshape(-1, weight.shape[-1])
    yield from torch.split(matrix, max(1, _PIECE // matrix.shape[1]))


def _read(checkpoint: Checkpoint, placement: Placement, name: str) -> Tensor:
    """[out, in] or [n], in the dtype that is stored; float32 where it is decoded."""
    module = name.removesuffix(".weight")
    if module in checkpoint.layers:
        return checkpoint.weight(module)
    weight = checkpoint.read(name)
    return weight.T if placement.transposed else weight


def as_bytes(data: Tensor) -> memoryview:
    """The bytes of a tensor, to be written."""
    return data.contiguous().view(torch.uint8).numpy().data.cast("B")
