"""The walk with data: activations flow through each block, before and after it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk import memory
from llmopt.blockwalk.block import Block
from llmopt.blockwalk.experts import Collected, Names, Pools, rounds
from llmopt.blockwalk.inlet import Inlet, LiveWeights
from llmopt.blockwalk.plan import Plan
from llmopt.blockwalk.shortcuts import Shortcuts
from llmopt.blockwalk.sink import PartResults
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.state import WalkState
from llmopt.linalg import InputStatistics


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
                with self._filled(index, LiveWeights(self._plan.checkpoint, results)):
                    self._advance(index)
                memory.release()
            else:
                self._change(index)
        if self._plan.head:
            self._change_head()

    def _begin(self) -> int:
        """Find or make the first activations; returns the block that they flow into."""
        saved = self._state.load()
        weights = LiveWeights(self._plan.checkpoint, PartResults())
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
        weights = LiveWeights(self._plan.checkpoint, PartResults())
        naming = self._plan.checkpoint.naming
        pools = Pools(naming, index)
        with self._filled(index, weights), Shortcuts(self._skeleton, self._activations) as known:
            if self._plan.transforms:
                self._transform(index, weights)
            for inlets in rounds(
                naming, index, self._skeleton.width, self._skeleton.nbytes(index),
                sequential=self._plan.true_sequential,
            ):  # fmt: skip
                known.forget(inlets)
                spared = known if self._plan.true_sequential else None
                collected = self._collect(index, inlets, pools, spared)
                known.forget(inlets)
                self._operate(weights, collected, self._skeleton.assign)
            for name, value in weights.settle():
                self._skeleton.put(name, value)
                known.clear()
            if not self._plan.idle:
                self._advance(index, known)
        self._plan.write(index, weights.results)
        if (index + 1) % self._plan.save_every == 0:
            self._state.save(index + 1, self._activations)
        self._plan.tell(index)

    def _transform(self, index: int, weights: LiveWeights) -> None:
        """Run the transforms on a block, with the statistics of all its linears."""
        naming = self._plan.checkpoint.naming
        collected = self._collect(index, naming.linears(index), Pools(naming, index), None)
        statistics = {
            name: one.statistics for one in collected for name in one.names if one.statistics
        }
        block = Block(index, self._plan.checkpoint, weights, statistics, self._skeleton.put)
        for transform in self._plan.transforms:
            transform.apply(block)

    def _change_head(self) -> None:
        index = self._plan.blocks
        weights = LiveWeights(self._plan.checkpoint, PartResults())
        statistics: InputStatistics | None = None
        if self._plan.needs_statistics():
            with self._skeleton.surroundings(weights, embedding=False):
                for rows in self._rows():
                    hidden = self._skeleton.finish(rows.to(self._plan.device))
                    statistics = _added(statistics, hidden)
        collected = Collected(names=self._plan.inlets(index)[0], statistics=statistics)
        self._operate(weights, [collected], lambda *_: None)
        self._plan.write(index, weights.results)
        self._plan.tell(index)

    def _operate(
        self,
        weights: LiveWeights,
        collected: list[Collected],
        assign: Callable[[str, Tensor], None],
    ) -> None:
        """Run the operations on each inlet, and give back the memory of its statistics."""
        while collected:
            # what the step before freed is given back before this one takes its own
            memory.release()
            one = collected.pop(0)
            inlet = Inlet(one.names, weights, one.statistics, assign, self._plan.device, one.cold)
            self._plan.apply(inlet)
            for name in weights.results.records.keys() & set(one.names):
                if one.cold is not None:
                    weights.results.records[name] |= {"cold": True, "tokens": one.cold.tokens}
            del one, inlet

    def _collect(
        self, index: int, inlets: Sequence[Names], pools: Pools, known: Shortcuts | None
    ) -> list[Collected]:
        """Push the activations into the block as far as the last of these inlets.

        In an idle walk, through it.
        """
        if not self._plan.needs_statistics():
            return [Collected(names=names, statistics=None) for names in inlets]
        found: dict[str, InputStatistics] = {}

        def observe(names: Names, *, last: bool) -> Callable[..., None]:
            first = names[0]

            def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                found[first] = _added(found.get(first), arguments[0])
                if known is not None and len(names) == 1:
                    known.note(first, arguments[0])
                if last:
                    raise _Enough

            return hook

        # no batch has to reach the last expert
        ends = not self._plan.idle and self._plan.checkpoint.naming.pool_of(inlets[-1][0]) is None
        hooks = [
            self._skeleton.module(names[0]).register_forward_pre_hook(
                observe(names, last=ends and names is inlets[-1])
            )
            for names in inlets
        ]
        try:
            if self._plan.idle:
                self._advance(index)
            else:
                for rows in self._rows(known):
                    self._reach(index, rows)
        finally:
            for hook in hooks:
                hook.remove()
        seen = ((names, found.pop(names[0], None)) for names in inlets)
        return list(pools.sort(seen, self._skeleton.width))

    def _reach(self, index: int, rows: Tensor) -> None:
        try:
            self._skeleton.call(index, rows.to(self._plan.device))
        except _Enough:
            return

    def _advance(self, index: int, known: Shortcuts | None = None) -> None:
        """Replace the activations by what comes out of the block."""
        for rows in self._rows(known):
            rows.copy_(self._skeleton.call(index, rows.to(self._plan.device)))

    def _rows(self, known: Shortcuts | None = None) -> Iterator[Tensor]:
        """The activations of each batch, to be read or overwritten."""
        for start, rows in enumerate(torch.split(self._activations, self._plan.batch_size)):
            with known.batch(start * self._plan.batch_size, len(rows)) if known else nullcontext():
                yield rows

    @contextmanager
    def _filled(self, index: int, weights: LiveWeights) -> Iterator[None]:
        self._skeleton.fill(index, weights)
        memory.release()
        try:
            yield
        finally:
            self._skeleton.drop(index)


def _added(statistics: InputStatistics | None, x: Tensor) -> InputStatistics:
    if statistics is None:
        statistics = InputStatistics.empty(x.shape[-1], x.device)
    statistics.add(x)
    return statistics
