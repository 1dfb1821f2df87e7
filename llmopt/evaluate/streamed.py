"""Logits of models for the windows of a text, in slices of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from llmopt.blockwalk.activations import Activations, Room
from llmopt.blockwalk.head import HeadRows
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.state import WalkState, digest, environment
from llmopt.blockwalk.stream import BlockStream
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import read_rows, write_rows
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.runtimes.base import Engine
from llmopt.runtimes.tokens import check_tokens
from llmopt.runtimes.torch.activations import round_tokens
from llmopt.specs.walking import SAVE_EVERY

#: told (blocks done, of how many)
OnBlock = Callable[[int, int], None]
_HIDDEN = "hidden"


class Scores(Protocol):
    """A model, as far as its logits go."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the logits cover."""

    @property
    def width(self) -> int:
        """Numbers of a token's row of the head, which is held by slices; 0 where all is held."""

    def prepare(self, on_block: OnBlock) -> None:
        """Do what comes before any logits."""

    def tokens(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Within, `logits` are those of the tokens from `start` to `stop`."""

    def logits(self, window: int, positions: slice) -> Tensor:
        """float32 [positions, tokens] of a window, on the device that they were computed on."""


class EngineScores:
    """A model that its engine holds as a whole; the logits of one window at a time are kept."""

    width = 0

    def __init__(self, engine: Engine, windows: Tensor) -> None:
        self._engine, self._windows = engine, windows
        self._tokens = slice(0)
        self._known: tuple[int, Tensor] | None = None

    @property
    def vocabulary(self) -> int:
        return self._engine.vocabulary

    def prepare(self, on_block: OnBlock) -> None:
        """There is nothing to do."""

    @contextmanager
    def tokens(self, start: int, stop: int) -> Iterator[None]:
        self._tokens = slice(start, stop)
        yield

    def logits(self, window: int, positions: slice) -> Tensor:
        if self._known is None or self._known[0] != window:
            self._known = None  # frees it before the next is computed
            self._known = (window, self._engine.logits(self._windows[window : window + 1])[0])
        return self._known[1][positions, self._tokens]


class StreamedScores:
    """A model that is walked once, a block at a time, and its head read by slices.

    It computes what TorchEngine does with the same model. In memory are one block, hidden states
    [windows, length, width] unless `in_file`, and while they are compared one window's. What is
    computed is kept in `folder`, and a killed walk goes on there.
    """

    def __init__(
        self, checkpoint: Checkpoint, windows: Tensor, folder: Path, *,
        dtype: torch.dtype, device: torch.device, in_file: bool = False,
    ) -> None:  # fmt: skip
        self._windows, self._state = windows, WalkState(folder)
        self._stream = BlockStream(
            checkpoint, windows, batch_size=1, dtype=dtype, device=device,
            room=Room(folder if in_file else None),
        )  # fmt: skip
        self._settings = {"tokens": digest(windows), "dtype": str(dtype), **environment(device)}
        self._path, self._head = folder / f"{_HIDDEN}.safetensors", HeadRows(checkpoint)
        _compute_as_stored(self._stream.skeleton, checkpoint)

    @property
    def vocabulary(self) -> int:
        return self._stream.skeleton.head_shape[0]

    @property
    def width(self) -> int:
        return self._stream.skeleton.head_shape[1]

    def prepare(self, on_block: OnBlock) -> None:
        """Find the last hidden states; tells of each block."""
        check_tokens(self._windows, self._stream.skeleton.context, self.vocabulary)
        with self._state.resumed(self._settings, lambda: self._path.unlink(missing_ok=True)):
            if not self._path.is_file():
                self._finish(self._walk(on_block))
            self._state.forget()

    @contextmanager
    def tokens(self, start: int, stop: int) -> Iterator[None]:
        with self._stream.head_rows(self._head.read(start, stop)):
            yield

    def logits(self, window: int, positions: slice) -> Tensor:
        hidden = read_rows(read_file_headers(self._path)[_HIDDEN], window, window + 1)
        given = hidden[:, positions].to(self._stream.device)
        return self._stream.skeleton.logits(given)[0].float()

    def _walk(self, on_block: OnBlock) -> Activations:
        stream, saved, first = self._stream, self._state.load(self._stream.room), 0
        if saved is not None:
            stream.learn_calls()
        if saved is None or not stream.resumable:
            activations = stream.embed()
        else:
            first, activations = saved
        on_block(first, stream.blocks)
        for index in range(first, stream.blocks):
            with stream.filled(index):
                stream.advance(index, activations)
            if (index + 1) % SAVE_EVERY == 0:
                self._state.save(index + 1, activations)
            on_block(index + 1, stream.blocks)
        return activations

    def _finish(self, activations: Activations) -> None:
        """Write what flows into the head, which may be of another width."""
        with self._stream.ending():
            rows = self._stream.rows(activations)
            pieces = (self._stream.skeleton.finish(each).cpu() for each in rows)
            first = next(pieces)
            shape = (activations.shape[0], *first.shape[1:])
            write_rows(self._path, _HIDDEN, shape, first.dtype, chain([first], pieces), {})


def _compute_as_stored(skeleton: Skeleton, checkpoint: Checkpoint) -> None:
    """Let quantized linears round their inputs where the checkpoint says so, as engines do.

    And add their biases where the model has none: tools write zeros, but they may be more.
    """
    for name, module in skeleton.modules.items():
        layout = checkpoint.layers.get(name)
        if layout is None:
            continue
        if layout.activations is not None:
            module.register_forward_pre_hook(_rounding(layout.activations))
        stored = checkpoint.stored.get(f"{name}.bias")
        placed = getattr(module, "bias", None) is not None or name == checkpoint.naming.head
        if stored is not None and not placed and bool((bias := stored.read()).any()):
            module.register_forward_hook(_adding(bias))


def _rounding(grid: str) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    return lambda _, given: round_tokens(given[0], grid)


def _adding(bias: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _, __, output: output + bias.to(output.device, output.dtype)
