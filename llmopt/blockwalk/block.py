"""What a pass sees of a model: one live block after the other, and at last the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmopt.blockwalk import memory
from llmopt.blockwalk.experts import Collected, Names
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import LlmoptError
from llmopt.grids.base import Quantized
from llmopt.linalg import InputMoments, InputStatistics, MeanSquares
from llmopt.specs.folds import Pair, pairs


class Pass(Protocol):
    """Something done to every block of a model, in the order of computation.

    changes: whether it replaces weights. One that does not, and comes last, sees a block while
    the activations pass through it for good: it asks for statistics once, and for no activations
    after that.
    """

    changes: bool

    def apply(self, block: LiveBlock) -> None:
        """Read the block's weights and what flows through it, and replace what should change."""


class Flow(Protocol):
    """What flows through a live block, and the module that computes it."""

    device: torch.device

    def collect(
        self, wanted: InputMoments, *, sequential: bool, through: bool
    ) -> Iterator[list[Collected]]:
        """Statistics of all inlets, those of one run over the data at a time; see `LiveBlock`.

        `through`: that run is the block's last, and what comes out of it is kept.
        """

    def put(self, name: str, *, in_turn: bool) -> None:
        """Compute with what a tensor was replaced by, if anything is computed.

        `in_turn`: `collect` has just come to that linear.
        """

    def inputs(self) -> Iterator[Tensor]:
        """What flows into the block, batch by batch."""

    def forward(self, hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The block's output, with these tensors in place of its own."""

    def targets(self) -> Iterator[Tensor]:
        """What flows out of the original block, for each of `inputs`."""


class LiveBlock:
    """One decoder block, or the head, as the passes before have left it.

    index: the block's; the head's is the number of blocks. linears: names in the checkpoint, those
    that share an input together. Statistics, activations and outputs are computed when they are
    asked for, with the weights of that moment. Weights are float32 and stay as fine as they are
    given until the last pass is done; then what is not quantized is rounded to the checkpoint's
    dtype.
    """

    def __init__(
        self, index: int, linears: Sequence[Names], weights: LiveWeights, flow: Flow
    ) -> None:
        self.index, self.linears = index, linears
        self._weights, self._flow = weights, flow
        self._through = False

    def run(self, passes: Sequence[Pass]) -> None:
        """Apply all passes, then round what is still finer than the checkpoint's dtype."""
        for each in passes:
            self._through = each is passes[-1] and not each.changes
            each.apply(self)
            memory.release()
        for name in self._weights.settle():
            self._flow.put(name, in_turn=False)

    def inlets(self, wanted: InputMoments, *, sequential: bool = False) -> Iterator[Inlet]:
        """The linears that share an input, with what is wanted of it, one input after the other.

        `sequential`: each input's statistics are collected when what comes before it in the block
        has been replaced; else all at once. An inlet's statistics are given back when the next
        one is asked for.
        """
        through = self._through and not sequential
        for collected in self._flow.collect(wanted, sequential=sequential, through=through):
            while collected:
                # what the step before freed is given back before this one takes its own
                memory.release()
                inlet = Inlet(self, collected.pop(0))
                yield inlet
                inlet.statistics = None

    def statistics(self, wanted: InputMoments) -> dict[str, InputStatistics]:
        """What is wanted of all linears' inputs, by their names; none in a walk without data."""
        collected = self._flow.collect(wanted, sequential=False, through=self._through)
        return {
            name: one.statistics
            for some in collected
            for one in some
            for name in one.names
            if one.statistics is not None
        }

    def inputs(self) -> Iterator[Tensor]:
        """What flows into the block, [batch, length, width], batch by batch."""
        return self._flow.inputs()

    def forward(self, hidden: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The block's output for a batch as `inputs` gives it.

        `weights`, [out, in] by linear, stand in place of the present ones; within
        `torch.enable_grad` the output can be differentiated by them.
        """
        given = (weights or {}).items()
        return self._flow.forward(
            hidden, {f"{name}.weight": self._weights.oriented(name, w) for name, w in given}
        )

    def targets(self) -> Iterator[Tensor]:
        """What the original block makes of each batch of `inputs`."""
        return self._flow.targets()

    def weight(self, name: str) -> Tensor:
        """The present weight of a linear, float32 [out, in], in memory of its own."""
        weight = self._weights.oriented(name, self._weights.read(f"{name}.weight"))
        return weight.to(self._flow.device, torch.float32).contiguous()

    def pieces(self, name: str, size: int) -> Iterator[Tensor]:
        """The same, some rows of at most about `size` elements at a time."""
        for rows in self._weights.pieces(name, size):
            yield rows.to(self._flow.device, torch.float32).contiguous()

    def mask(self, name: str) -> Tensor:
        """Where a linear's weight is zero in the source, bool [out, in]."""
        source = self._weights.oriented(name, self._weights.original(f"{name}.weight"))
        return (source == 0).to(self._flow.device)

    def replace(
        self, name: str, value: Quantized | Tensor, record: Mapping[str, object] | None = None
    ) -> None:
        """Give a linear a new weight [out, in]; from here on the block computes with it.

        `record` (JSON values) is kept with the result and returned by the walk, in a resumed one,
        too.
        """
        self._replace(name, value, record, in_turn=False)

    def tensor(self, name: str) -> Tensor | None:
        """Another tensor as float32, None where the block has none of this name."""
        if not self._weights.has(name):
            return None
        return self._weights.read(name).to(self._flow.device, torch.float32)

    def replace_tensor(self, name: str, value: Tensor) -> Tensor:
        """Give another tensor a value, rounded to the checkpoint's dtype; returns it as float32."""
        rounded = self._weights.narrowed(name, value).to(torch.float32)
        self._weights.hold(name, rounded)
        self._flow.put(name, in_turn=False)
        return rounded

    def record(self, name: str, what: Mapping[str, object]) -> None:
        """Note for the ledger what was done to a tensor."""
        self._weights.results.records[name] = dict(what)

    @property
    def is_head(self) -> bool:
        """Whether this is the head: it has one linear and statistics, and no outputs."""
        return self.index == self._weights.checkpoint.naming.block_count

    def pairs(self) -> Iterator[Pair]:
        """Where a scale of linears' inputs can be folded into what comes before them."""
        checkpoint = self._weights.checkpoint
        config = checkpoint.family.language_config(checkpoint.config)
        return pairs(checkpoint.naming, self.index, config, dict.fromkeys(checkpoint.names))

    def _replace(
        self,
        name: str,
        value: Quantized | Tensor,
        record: Mapping[str, object] | None,
        *,
        in_turn: bool,
    ) -> None:
        self._weights.replace(name, value)
        self._flow.put(f"{name}.weight", in_turn=in_turn)
        if record is not None:
            self.record(name, record)


class Inlet:
    """Linears that share an input.

    names: the linears' names in the checkpoint. statistics: of the input, from calibration
    activations that passed through all that was changed before; None in a walk without data.
    cold: of an expert that few tokens reached, whose statistics are those of all experts.
    """

    def __init__(self, block: LiveBlock, collected: Collected) -> None:
        self.names, self.cold = collected.names, collected.cold
        self.statistics = collected.statistics
        self._block = block

    @property
    def squares(self) -> MeanSquares | None:
        """Of the tokens that reached these very linears; None in a walk without data."""
        if self.cold is not None or self.statistics is None:
            return self.cold
        return self.statistics.squares

    def weight(self, name: str) -> Tensor:
        """As `LiveBlock.weight`."""
        return self._block.weight(name)

    def pieces(self, name: str, size: int) -> Iterator[Tensor]:
        """As `LiveBlock.pieces`."""
        return self._block.pieces(name, size)

    def replace(
        self, name: str, value: Quantized | Tensor, record: Mapping[str, object] | None = None
    ) -> None:
        """As `LiveBlock.replace`, for one of these linears; a record tells of a cold expert."""
        if name not in self.names:
            raise LlmoptError(f"{name} is not one of the linears {', '.join(self.names)}")
        if record is not None and self.cold is not None:
            record = {**record, "cold": True, "tokens": self.cold.tokens}
        self._block._replace(name, value, record, in_turn=True)
