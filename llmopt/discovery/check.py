"""Whether a model that is walked block by block gives the logits of the model as a whole."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from llmopt.blockwalk.stream import BlockStream
from llmopt.discovery.running import logits_of
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model
from llmopt.formats.fit import check_fit

#: sequences that are computed together: some at once, one alone
_BATCH = 3
#: how close logits are, of their spread
_CLOSE = {torch.float64: 1e-5, torch.float32: 1e-3}


def walked_logits(folder: Path, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of a checkpoint, [sequences, length, vocabulary], computed a block at a time."""
    checkpoint = Checkpoint.open(folder)
    check_fit(checkpoint, empty_model(checkpoint, dtype))
    stream = BlockStream(
        checkpoint, tokens, batch_size=_BATCH, dtype=dtype, device=torch.device("cpu")
    )
    with torch.no_grad():
        hidden = stream.embed()
        for index in range(stream.blocks):
            with stream.filled(index):
                stream.advance(index, hidden)
        with stream.ending(head=True):
            rows = [stream.skeleton.finish(each) for each in stream.rows(hidden)]
            return torch.cat([stream.skeleton.logits(each) for each in rows])


def is_walked(folder: Path, model: nn.Module, tokens: Tensor) -> bool:
    """Whether these are those of the model that the folder was saved from."""
    wanted = logits_of(model, tokens)
    dtype = next(model.parameters()).dtype
    found = walked_logits(folder, tokens, dtype)
    return bool((found - wanted).abs().max() <= _CLOSE[dtype] * wanted.std())
