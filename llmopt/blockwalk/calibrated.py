"""The walk with data: activations flow through each block, before and after it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk import memory
from llmopt.blockwalk.inlet import Inlet, Weights
from llmopt.blockwalk.plan import Plan
from llmopt.blockwalk.sink import Results
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.state import WalkState
from llmopt.errors import LlmoptError
from llmopt.methods.quantize.base import InletStatistics

#: the linears of an inlet, with the statistics of their input
Collected = list[tuple[tuple[str, ...], InletStatistics | None]]


class _Enough(Exception):
    pass


class CalibratedWalk:
    """Activations [sequences, length, width], overwritten batch by batch and block by block."""

    def __init__(self, plan: Plan, tokens: Tensor, state: WalkState) -> None:
        self._plan = plan
        self._state = state
        self._batches = torch.split(tokens, plan.batch_size)
        self._skeleton = Skeleton(plan.checkpoint, dtype=plan.dtype, device=plan.device)
        self._activations = torch.empty(0)

    def run(self, done: int) -> None:
        """Do what is left after `done` blocks, replaying what the saved activations lack."""
        for index in range(self._begin(), self._plan.blocks):
            if index < done:
                results = self._plan.sink.read(self._plan.part(index))
                with self._filled(index, Weights(self._plan.checkpoint, results)):
                    self._advance(index)
                memory.release()
            else:
                self._change(index)
        if self._plan.head:
            self._change_head()

    def _begin(self) -> int:
        """Find or make the first activations; returns the block that they flow into."""
        saved = self._state.load()
        weights = Weights(self._plan.checkpoint, Results())
        with self._skeleton.surroundings(weights):
            if saved is None:
                hidden = (self._skeleton.embed(batch) for batch in self._batches)
                self._fill_activations(hidden)
            else:
                # the skeleton still has to see how blocks are called, for each size of batch
                for batch in {len(batch): batch for batch in self._batches}.values():
                    self._skeleton.embed(batch)
        memory.release()
        if saved is None:
            return 0
        self._activations = saved[1]
        return saved[0]

    def _fill_activations(self, batches: Iterator[Tensor]) -> None:
        sequences = sum(len(batch) for batch in self._batches)
        place = 0
        for hidden in batches:
            if place == 0:
                self._activations = torch.empty(sequences, *hidden.shape[1:], dtype=hidden.dtype)
            self._activations[place : place + len(hidden)] = hidden
            place += len(hidden)

    def _change(self, index: int) -> None:
        """One block: statistics, operations, activations, results."""
        weights = Weights(self._plan.checkpoint, Results())
        inlets = self._plan.inlets(index)
        with self._filled(index, weights):
            rounds = [[inlet] for inlet in inlets] if self._plan.true_sequential else [inlets]
            for some in rounds:
                self._operate(weights, self._collect(index, some), self._skeleton.assign)
            self._advance(index)
        self._plan.write(index, weights.results)
        if (index + 1) % self._plan.save_every == 0:
            self._state.save(index + 1, self._activations)
        self._plan.tell(index)

    def _change_head(self) -> None:
        index = self._plan.blocks
        weights = Weights(self._plan.checkpoint, Results())
        statistics: InletStatistics | None = None
        if self._plan.needs_statistics():
            with self._skeleton.surroundings(weights, embedding=False):
                for rows in self._rows():
                    hidden = self._skeleton.finish(rows.to(self._plan.device))
                    statistics = _added(statistics, hidden)
        self._operate(weights, [(self._plan.inlets(index)[0], statistics)], lambda *_: None)
        self._plan.write(index, weights.results)
        self._plan.tell(index)

    def _operate(
        self, weights: Weights, collected: Collected, assign: Callable[[str, Tensor], None]
    ) -> None:
        """Run the operations on each inlet, and give back the memory of its statistics."""
        while collected:
            # what the step before freed is given back before this one takes its own
            memory.release()
            names, statistics = collected.pop(0)
            self._plan.apply(Inlet(names, weights, statistics, assign, self._plan.device))
            del statistics

    def _collect(self, index: int, inlets: Sequence[tuple[str, ...]]) -> Collected:
        """Push the activations into the block as far as the last of these inlets."""
        if not self._plan.needs_statistics():
            return [(names, None) for names in inlets]
        found: dict[str, InletStatistics] = {}

        def observe(first: str, *, last: bool) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                found[first] = _added(found.get(first), arguments[0])
                if last:
                    raise _Enough

            return hook

        hooks = [
            self._skeleton.module(names[0]).register_forward_pre_hook(
                observe(names[0], last=names is inlets[-1])
            )
            for names in inlets
        ]
        try:
            for rows in self._rows():
                self._reach(index, rows)
        finally:
            for hook in hooks:
                hook.remove()
        for names in inlets:
            if names[0] not in found:
                raise LlmoptError(f"no activations reached {names[0]}")
        return [(names, found[names[0]]) for names in inlets]

    def _reach(self, index: int, rows: Tensor) -> None:
        try:
            self._skeleton.call(index, rows.to(self._plan.device))
        except _Enough:
            return

    def _advance(self, index: int) -> None:
        """Replace the activations by what comes out of the block."""
        for rows in self._rows():
            rows.copy_(self._skeleton.call(index, rows.to(self._plan.device)))

    def _rows(self) -> Iterator[Tensor]:
        """The activations of each batch, to be read or overwritten."""
        yield from torch.split(self._activations, self._plan.batch_size)

    @contextmanager
    def _filled(self, index: int, weights: Weights) -> Iterator[None]:
        self._skeleton.fill(index, weights)
        memory.release()
        try:
            yield
        finally:
            self._skeleton.drop(index)


def _added(statistics: InletStatistics | None, x: Tensor) -> InletStatistics:
    if statistics is None:
        statistics = InletStatistics.empty(x.shape[-1], x.device)
    statistics.add(x)
    return statistics
