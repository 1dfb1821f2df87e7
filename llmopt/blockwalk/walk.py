"""The forward walk: every block in turn is changed, written and left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmopt.blockwalk import memory
from llmopt.blockwalk.activations import Activations, Room
from llmopt.blockwalk.block import LiveBlock, Pass
from llmopt.blockwalk.flow import BlockFlow, HeadFlow, NoFlow
from llmopt.blockwalk.parts import OnBlock, Parts
from llmopt.blockwalk.shortcuts import Shortcuts
from llmopt.blockwalk.sink import Record, Sink
from llmopt.blockwalk.state import WalkState, digest, environment
from llmopt.blockwalk.stream import BlockStream
from llmopt.blockwalk.weights import LiveWeights
from llmopt.formats.checkpoint import Checkpoint
from llmopt.specs.walking import SAVE_EVERY


def walk(
    checkpoint: Checkpoint,
    tokens: Tensor | None,
    passes: Sequence[Pass],
    sink: Sink,
    state_folder: Path,
    *,
    head: bool = False,
    batch_size: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    save_every: int = SAVE_EVERY,
    activations_in_file: bool = False,
    on_block: OnBlock | None = None,
) -> dict[str, Record]:
    """Apply `passes`, in this order, to every block, and to the head if `head`.

    tokens: calibration, int64 [sequences, length]; None where no pass looks at what flows through
    a block, and then nothing is computed but the passes. All results go to `sink`, and all that
    does not change is kept there, so that each tensor of the checkpoint is accounted for once. A
    head that shares the embedding's weight gets one of its own: the result's config must then say
    that they are not tied.

    activations_in_file: activations lie in `state_folder`, as wide ones do on a processor anyway.

    A walk that was killed goes on when it is called again with the same arguments, `state_folder`
    and sink, and gives the same bytes. Activations are saved every `save_every` blocks; what was
    computed since is replayed from the finished parts. Arguments, software or a CPU that changed
    in between start it anew; a different checkpoint or other passes need another folder.

    Returns what passes recorded, by the name that they gave.
    """
    memory.steady()
    parts, device = Parts(checkpoint, sink, head=head), torch.device(device)
    state = WalkState(state_folder)
    settings = {
        "tokens": None if tokens is None else digest(tokens),
        "blocks": parts.blocks,
        "head": head,
        "batch_size": batch_size,
        "dtype": str(dtype),
        **environment(device),
    }
    with state.resumed(settings, clear=parts.clear):
        done, tell = parts.done(), on_block or (lambda *_: None)
        if tokens is None:
            for index in range(done, parts.total):
                weights, linears = LiveWeights(checkpoint), parts.linears(index)
                LiveBlock(index, linears, weights, NoFlow(linears, device)).run(passes)
                parts.write(index, weights.results)
                tell(index + 1, parts.total)
        elif done < parts.total:
            stream = BlockStream(
                checkpoint, tokens, batch_size=batch_size, dtype=dtype, device=device,
                room=Room(state_folder if activations_in_file else None),
            )  # fmt: skip
            beside = Room(state_folder) if device.type == "cpu" else None
            _CalibratedWalk(stream, beside, passes, parts, state, save_every, tell).run(done)
        state.forget()
        return parts.keep_the_rest()


class _CalibratedWalk:
    """Activations flow through each block, before and after it is changed.

    They are overwritten batch by batch and block by block. beside: room for inputs that memory has
    none for, where a file is read sooner than they are computed.
    """

    def __init__(
        self,
        stream: BlockStream,
        beside: Room | None,
        passes: Sequence[Pass],
        parts: Parts,
        state: WalkState,
        save_every: int,
        tell: OnBlock,
    ) -> None:
        self._stream, self._passes, self._parts = stream, passes, parts
        self._state, self._beside, self._save_every = state, beside, save_every
        self._tell = tell
        self._activations: Activations = torch.empty(0)

    def run(self, done: int) -> None:
        """Do what is left after `done` blocks, replaying what the saved activations lack."""
        for index in range(self._begin(), self._parts.total):
            if index == self._parts.blocks:
                self._change_head(index)
            elif index < done:
                self._replay(index)
            else:
                self._change(index)

    def _begin(self) -> int:
        """Find or make the first activations; returns the block that they flow into."""
        saved = self._state.load(self._stream.room)
        if saved is not None:
            self._stream.learn_calls()
        if saved is None or not self._stream.resumable:
            self._activations = self._stream.embed()
            return 0
        first, self._activations = saved
        return first

    def _replay(self, index: int) -> None:
        weights = LiveWeights(self._stream.checkpoint, self._parts.read(index))
        with self._stream.filled(index, weights):
            self._stream.advance(index, self._activations)
        memory.release()

    def _change(self, index: int) -> None:
        stream, weights = self._stream, LiveWeights(self._stream.checkpoint)
        with (
            stream.filled(index, weights),
            Shortcuts(stream.skeleton, self._activations, stream.room, self._beside) as known,
        ):
            flow = BlockFlow(stream, index, self._activations, weights, known)
            LiveBlock(index, self._parts.linears(index), weights, flow).run(self._passes)
            if goes_on := index + 1 < self._parts.total:
                flow.advance()
        self._parts.write(index, weights.results)
        if goes_on and (index + 1) % self._save_every == 0:
            self._state.save(index + 1, self._activations)
        self._tell(index + 1, self._parts.total)

    def _change_head(self, index: int) -> None:
        weights, linears = LiveWeights(self._stream.checkpoint), self._parts.linears(index)
        flow = HeadFlow(self._stream, linears, self._activations)
        LiveBlock(index, linears, weights, flow).run(self._passes)
        self._parts.write(index, weights.results)
        self._tell(index + 1, self._parts.total)
