"""The backward walk: what the model's output makes of an error in each linear, block by block.

A forward walk leaves the input of every block in a file. Then, from the last block to the first,
each block is computed again, this time with what autograd needs, and the gradient is pulled
through it. In memory are one block, its graph for one batch, and one gradient of the size of the
activations; autograd through the whole model would hold all blocks and all their graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from llmopt.blockwalk import memory
from llmopt.blockwalk.activations import Activations, Room
from llmopt.blockwalk.experts import Names, Pools
from llmopt.blockwalk.parts import OnBlock
from llmopt.blockwalk.skeleton import Skeleton
from llmopt.blockwalk.state import WalkState, environment, keep
from llmopt.blockwalk.stream import BlockStream
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import RequestError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.safetensors import read_rows
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.linalg import InputMoments, InputStatistics, accumulated


@dataclass(frozen=True, kw_only=True)
class InletSensitivity:
    """Linears that share an input: the input's statistics, and what their outputs do to the loss.

    fisher: by linear, [out] float32, or [1] for an expert that no token reached: per output, the
    sum over its tokens of the squared gradient of the loss, divided by the number of all tokens.
    The loss is the negative log likelihood, summed over positions, of labels drawn from the model
    itself, so that to second order a change dy of the outputs costs a mean KL divergence of
    1/2 sum_r fisher[r] E[dy_r^2] nats a token.
    """

    names: Names
    statistics: InputStatistics
    fisher: Mapping[str, Tensor]


#: what a change of a linear costs follows from this
_WANTED = InputMoments(hessian=True)

#: called with a block's index, what its inlets showed, and its weights
Visit = Callable[[int, list[InletSensitivity], LiveWeights], None]


def walk_backward(
    checkpoint: Checkpoint,
    tokens: Tensor,
    visit: Visit,
    state_folder: Path,
    *,
    seed: int = 0,
    batch_size: int = 2,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    activations_in_file: bool = False,
    on_block: OnBlock | None = None,
) -> None:
    """Show every block to `visit`, the last one first.

    tokens: int64 [sequences, length]. `seed` draws the labels. `activations_in_file` as in `walk`:
    of the one gradient that has their size. A walk that was killed goes on after the last block
    that `visit` returned from when it is called again with the same arguments, so `visit` must keep
    its results in files, and may see a block twice. Another device, software or CPU starts it anew;
    any other argument that differs needs another folder.
    """
    state, device = WalkState(state_folder), torch.device(device)
    with state.resumed(environment(device)):
        stream = BlockStream(
            checkpoint, tokens, batch_size=batch_size, dtype=dtype, device=device,
            room=Room(state_folder if activations_in_file else None),
        )  # fmt: skip
        stream.learn_calls()
        if checkpoint.family.stacks or not stream.resumable:
            raise RequestError(
                f"blocks of this {checkpoint.family.id} model share more than hidden states, or "
                "tensors of experts, through which no gradient is followed",
                hint="the same bits for all linears, or overrides, need no measure",
            )
        walk = _BackwardWalk(stream, tokens.numel(), state_folder)
        walk.run(state, visit, seed, on_block or (lambda *_: None))
        state.forget()


class _BackwardWalk:
    """Gradients [sequences, length, width], overwritten batch by batch and block by block."""

    def __init__(self, stream: BlockStream, tokens: int, folder: Path) -> None:
        self._stream, self._tokens, self._folder = stream, tokens, folder

    def run(self, state: WalkState, visit: Visit, seed: int, on_block: OnBlock) -> None:
        saved, total = state.load(self._stream.room), self._stream.blocks
        if saved is None:
            first, gradient = total, self._loss_gradient(self._forward(), seed)
            state.save(first, gradient)
        else:
            first, gradient = saved
        for index in reversed(range(first)):
            weights = LiveWeights(self._stream.checkpoint)
            with self._stream.filled(index, weights):
                sensitivities = self._backward(index, gradient)
            visit(index, sensitivities, weights)
            state.save(index, gradient)
            self._inputs(index).unlink()
            memory.release()
            on_block(total - index, total)

    def _forward(self) -> Activations:
        """Write each block's input to its file; returns what comes out of the last one."""
        hidden = self._stream.embed()
        for index in range(self._stream.blocks):
            keep(self._inputs(index), hidden, {})
            with self._stream.filled(index):
                self._stream.advance(index, hidden)
        return hidden

    def _loss_gradient(self, hidden: Activations, seed: int) -> Activations:
        """The gradient at the last block's output, one sequence at a time; overwrites `hidden`."""
        device, skeleton = self._stream.device, self._stream.skeleton
        generator = torch.Generator(device).manual_seed(seed)
        with self._stream.ending(head=True), torch.enable_grad():
            for row in (slice(place, place + 1) for place in range(hidden.shape[0])):
                given = hidden[row].to(device, copy=True).requires_grad_()
                logits = skeleton.logits(skeleton.finish(given))[0].float()
                probabilities = logits.detach().softmax(-1)
                labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                hidden[row] = torch.autograd.grad(loss, given)[0]
        return hidden

    def _backward(self, index: int, gradient: Activations) -> list[InletSensitivity]:
        """Pull the gradient through a filled block, in place; what its inlets showed meanwhile."""
        stream, naming = self._stream, self._stream.checkpoint.naming
        inputs = read_file_headers(self._inputs(index))["activations"]
        with ExitStack() as stack:
            meters = [
                stack.enter_context(_Meter(stream.skeleton, names).attached())
                for names in naming.linears(index)
            ]
            for batch, pulled in zip(stream.batches(), stream.rows(gradient), strict=True):
                given = read_rows(inputs, batch.start, batch.stop).to(stream.device)
                with torch.enable_grad():
                    output = stream.skeleton.call(index, given.requires_grad_())
                gradient[batch] = torch.autograd.grad(output, given, pulled)[0]
        fisher = {meter.names: meter.fisher(self._tokens) for meter in meters}
        seen = [(meter.names, meter.statistics) for meter in meters]
        sorted_out = Pools(naming, index).sort(seen, stream.skeleton.width)
        return [
            InletSensitivity(
                names=each.names, statistics=each.statistics, fisher=fisher[each.names]
            )
            for each in sorted_out
            if each.statistics is not None
        ]

    def _inputs(self, index: int) -> Path:
        return self._folder / f"inputs-{index:05d}.safetensors"


class _Meter:
    """Hooks on the linears of one inlet; `statistics` is None as long as nothing reached them."""

    def __init__(self, skeleton: Skeleton, names: Names) -> None:
        self.names = names
        self.statistics: InputStatistics | None = None
        self._modules = {name: skeleton.module(name) for name in names}
        self._squares: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[_Meter]:
        first = self._modules[self.names[0]]
        hooks = [first.register_forward_pre_hook(self._see_input)]
        for name, module in self._modules.items():
            hooks.append(module.register_forward_hook(self._see_output(name)))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def fisher(self, tokens: int) -> dict[str, Tensor]:
        """By linear; see `InletSensitivity`."""
        nothing = torch.zeros(1, dtype=torch.float64)
        return {name: (self._squares.get(name, nothing) / tokens).float() for name in self.names}

    def _see_input(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.statistics = accumulated(self.statistics, arguments[0].detach(), _WANTED)

    def _see_output(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def see_gradient(gradient: Tensor) -> None:
            rows = gradient.reshape(-1, gradient.shape[-1])
            self._squares[name] += rows.double().square().sum(0)

        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if name not in self._squares:
                size = output.shape[-1]
                self._squares[name] = torch.zeros(size, dtype=torch.float64, device=output.device)
            output.register_hook(see_gradient)  # type: ignore[no-untyped-call]

        return hook
