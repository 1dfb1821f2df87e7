"""Sparing what a block would compute again: modules that end in a linear whose inputs are known.

A walk that changes a block inlet by inlet runs it several times, each time further. Attention ends
in its output projection, and from when the linears before that are done, the projection's inputs
are the same each time. They are kept, and attention is then the projection of what was kept. It is
projected once: where outputs are as wide as inputs, they take their place. So it is with an MLP,
whose inputs are wider: those lie in a file, if they may, which is read faster than they are
computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmopt.blockwalk.activations import Activations, Batch, Room
from llmopt.blockwalk.hollow import Forward
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.specs.walking import KEPT_LITTLE, KEPT_SHARE


@dataclass
class _End:
    """What is `held` for `linear`, which ends `module` if nothing else does.

    held: [sequences, length, width], its inputs; of the first `projected` sequences its outputs.
    inside: what names of linears in the module begin with. beside: whether it counts as none of
    what may be kept. complete: whether all inputs are there.
    others: how many outputs the module has besides the linear's, None while it is not known; a
    module of one output, not in a tuple, has -1.
    """

    linear: nn.Module
    module: nn.Module
    inside: str
    held: Activations
    beside: bool = False
    complete: bool = False
    projected: int = 0
    others: int | None = None

    def project(self, batch: Batch, output: Tensor) -> None:
        """Hold the outputs of these sequences, which are the next."""
        if batch.start == self.projected and output.shape[1:] == self.held.shape[1:]:
            self.held[batch] = output
            self.projected = batch.stop


class Shortcuts:
    """Those of one block, whose hidden states are `activations` [sequences, length, width].

    What is kept lies in `room`; what is more than may be kept there, `beside` it, or nowhere. Use
    as a context: at its end all modules are as they were.
    """

    def __init__(
        self, skeleton: Skeleton, activations: Activations, room: Room, beside: Room | None = None
    ) -> None:
        self._skeleton, self._room, self._beside = skeleton, room, beside
        self._shape, self._dtype = activations.shape, activations.dtype
        one = self._shape[:2].numel() * self._dtype.itemsize
        self._left = max(KEPT_SHARE * self._shape[2:].numel(), KEPT_LITTLE // one)
        self._ends: dict[str, _End] = {}
        self._batch = slice(0, 0)

    def __enter__(self) -> Shortcuts:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Compute everything again, from here on."""
        for name in list(self._ends):
            self._drop(name)

    def forget(self, inlets: Iterable[Sequence[str]]) -> None:
        """Give up modules in which these linears are looked at or changed.

        But for their ends, as long as these have not been computed for good.
        """
        for names in inlets:
            for end, known in list(self._ends.items()):
                within = names[0].startswith(known.inside)
                if within and (tuple(names) != (end,) or known.projected):
                    self._drop(end)

    def note(self, name: str, x: Tensor) -> None:
        """The input x of a linear in the present batch, if it is worth keeping."""
        if self._skeleton.carries_state:
            return  # what a module gives beside its output is needed, too
        whole = x.shape[:-1] == (self._batch.stop - self._batch.start, self._shape[1])
        if self._batch.start == 0 and whole:
            self._begin(name, x.shape[-1])
        end = self._ends.get(name)
        if end is None:
            return
        if not whole:
            self._drop(name)
            return
        end.held[self._batch] = x
        end.complete = self._batch.stop == self._shape[0]

    @contextmanager
    def batch(self, sequences: Batch) -> Iterator[None]:
        """What runs inside runs on these sequences."""
        self._batch = sequences
        unknown = [e for e in self._ends.items() if e[1].complete and e[1].others is None]
        hooks = [hook for name, end in unknown for hook in self._watched(name, end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, name: str, width: int) -> None:
        """Hold a linear's inputs, if there is room for them."""
        beside = width > self._left
        room = self._beside if beside else self._room
        if room is None:
            return
        inside = name.rpartition(".")[0] + "."
        linear = self._skeleton.module(name)
        module = self._skeleton.holder(name)
        held = room.make(f"inputs.{name}", (*self._shape[:2], width), self._dtype)
        self._ends[name] = _End(linear, module, inside, held, beside)
        self._left -= 0 if beside else width

    def _watched(self, name: str, end: _End) -> Iterator[RemovableHandle]:
        """Let the module run once to see whether its output is the linear's very output."""
        last: list[tuple[Tensor, int]] = []

        def note(_: nn.Module, __: object, output: Tensor) -> None:
            last[:] = [(output, output._version)]

        def judge(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not last or first is not last[0][0] or first._version != last[0][1]:
                self._drop(name)
                return
            end.others = len(output) - 1 if isinstance(output, tuple) else -1
            end.module.forward = self._shortened(end)
            end.project(self._batch, first)

        yield end.linear.register_forward_hook(note)
        yield end.module.register_forward_hook(judge)

    def _shortened(self, end: _End) -> Forward:
        def forward(*_: object, **__: object) -> object:
            # a copy: what comes out of a module may be overwritten
            output = end.held[self._batch].to(self._skeleton.device, copy=True)
            if self._batch.start >= end.projected:
                output = end.linear(output)
                end.project(self._batch, output)
            # weights of attention, caches: a block that is called alone does not use them
            return output if end.others == -1 else (output, *[None] * (end.others or 0))

        return forward

    def _drop(self, name: str) -> None:
        end = self._ends.pop(name)
        self._left += 0 if end.beside else end.held.shape[-1]
        self._room.give_back(end.held)
        if end.others is not None:
            del end.module.forward
