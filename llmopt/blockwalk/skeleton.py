"""A model that exists in shape only, into which one block's weights at a time are put.

It is built by transformers from the config, on torch's meta device, so attention, masks and rotary
embeddings are the model's own. What a block is called with is learned from the model, too: its
decoder runs once over a batch with every block replaced by a recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model

#: arguments of a block after the hidden states
Call = tuple[tuple[object, ...], dict[str, object]]
#: what stands in for a block: (index, hidden states, its other arguments) -> hidden states
StandIn = Callable[[int, Tensor, Call], Tensor]


class Forward(Protocol):
    """A module's forward, whatever it is called with beside hidden states."""

    def __call__(self, hidden: Tensor, /, *arguments: object, **keywords: object) -> object: ...


class _Stopped(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _OtherReturn(Exception):
    pass


class Skeleton:
    """The decoder of a checkpoint without its weights.

    `fill` puts a block's weights in and `drop` takes them out; `call` runs a filled block on the
    hidden states [batch, length, width] of a batch, whose size `embed` must have seen before.
    `device` is where all this happens.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self._family = checkpoint.family
        self._naming = checkpoint.naming
        self._dtype = dtype
        self.device = device
        # buffers are real; the parameters stay on meta until they are filled
        self._model: nn.Module = empty_model(checkpoint, dtype)
        self._decoder = self._model.get_submodule(self._family.base)
        self._blocks: Sequence[nn.Module] = list(
            self._decoder.get_submodule(self._family.blocks).children()
        )
        for module in self._decoder.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self._calls: dict[int, list[Call]] = {}

    @property
    def context(self) -> int | None:
        """The most tokens that the model was made for, None where its config sets no limit."""
        length = getattr(self._model.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def head_shape(self) -> tuple[int, int]:
        """Tokens of the vocabulary, and the width of what `finish` gives."""
        head = self._model.get_submodule(self._family.head)
        assert isinstance(head, nn.Linear)
        return head.out_features, head.in_features

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All parts of the model, by the names that they have in the checkpoint."""
        return {self._naming.name(path): part for path, part in self._model.named_modules()}

    def module(self, name: str) -> nn.Module:
        """A module by the name that it has in the checkpoint."""
        return self._model.get_submodule(self._naming.module(name))

    def width(self, linear: str) -> int:
        """How many input channels a linear has."""
        weight = self.module(linear).weight
        assert isinstance(weight, Tensor)
        return weight.shape[0 if self._family.conv1d else 1]

    def nbytes(self, block: int) -> int:
        """What a block's weights take when they are filled in."""
        return sum(weight.nbytes for weight in self._blocks[block].parameters())

    def fill(self, block: int, weights: LiveWeights) -> None:
        """Read a block's weights."""
        self._fill(self._path(block), weights)

    def drop(self, block: int) -> None:
        """Forget a block's weights."""
        _drop(self._blocks[block])

    def put(self, name: str, value: Tensor) -> None:
        """Give a tensor of a filled block another value."""
        owner, _, leaf = name.rpartition(".")
        _assign(self.module(owner), leaf, self._ready(value))

    def call(
        self, block: int, hidden: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The block's output, with these tensors in place of those that were filled in."""
        module, (arguments, keywords) = self._blocks[block], self._calls[hidden.shape[0]][block]
        inside = {self._inside(block, name): value for name, value in (weights or {}).items()}
        if inside:
            output = functional_call(module, inside, (hidden, *arguments), keywords)
        else:
            output = module(hidden, *arguments, **keywords)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @contextmanager
    def surroundings(self, weights: LiveWeights, ids: Tensor | None = None) -> Iterator[None]:
        """Hold what is not in any block: norms and, of the token embedding, the rows of `ids`.

        ids: int64 [n], each once, in ascending order; `embed` is then for these tokens alone.
        """
        family = self._family
        try:
            for name, _ in self._decoder.named_children():
                if name not in (family.blocks, family.embedding):
                    self._fill(f"{family.base}.{name}", weights)
            with nullcontext() if ids is None else self._rows_of_embedding(weights, ids):
                yield
        finally:
            for name, module in self._decoder.named_children():
                if name != self._family.blocks:
                    _drop(module)

    @contextmanager
    def _rows_of_embedding(self, weights: LiveWeights, ids: Tensor) -> Iterator[None]:
        """The embedding with these rows alone; it is called with their places among them."""
        path, known = f"{self._family.base}.{self._family.embedding}", ids.to(self.device)
        rows = weights.rows(self._naming.name(f"{path}.weight"), ids)
        module = self._model.get_submodule(path)
        assert isinstance(module, nn.Embedding)

        def place(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return torch.searchsorted(known, given[0]), *given[1:]

        _assign(module, "weight", self._ready(rows))
        # which row stands for no token matters where gradients flow alone
        padding, module.padding_idx = module.padding_idx, None
        hook = module.register_forward_pre_hook(place)
        try:
            yield
        finally:
            hook.remove()
            module.padding_idx = padding

    def embed(self, tokens: Tensor) -> Tensor:
        """What flows into the first block, for int64 [batch, length]; within `surroundings`."""
        known = tokens.shape[0] in self._calls
        calls: list[Call] = []

        def record(block: int, hidden: Tensor, call: Call) -> Tensor:
            calls.append(call)
            if known or block == len(self._blocks) - 1:
                raise _Stopped(hidden)
            return hidden

        def attempt() -> Tensor:
            calls.clear()
            try:
                self._decoder(input_ids=tokens.to(self.device), use_cache=False)
            except _Stopped as stopped:
                return stopped.hidden
            raise LlmoptError(f"{self._family.id}: the model did not run its blocks")

        hidden = self._with_stand_in(record, attempt)
        if not known:
            self._calls[tokens.shape[0]] = calls
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """What flows into the head when `hidden` comes out of the last block.

        Runs in `surroundings`, which need not hold the embedding.
        """
        embedding = self._decoder.get_submodule(self._family.embedding)
        assert isinstance(embedding, nn.Embedding)
        nothing = hidden.new_zeros(*hidden.shape[:2], embedding.embedding_dim)

        def skip(block: int, given: Tensor, _: Call) -> Tensor:
            return hidden if block == 0 else given

        def attempt() -> Tensor:
            output: Tensor = self._decoder(inputs_embeds=nothing, use_cache=False)[0]
            if output.ndim != hidden.ndim:
                raise _OtherReturn
            return output

        return self._with_stand_in(skip, attempt)

    @contextmanager
    def head(self, weights: LiveWeights) -> Iterator[None]:
        """Hold the head's weight, for `logits`."""
        try:
            self._fill(self._family.head, weights)
            yield
        finally:
            _drop(self._model.get_submodule(self._family.head))

    @contextmanager
    def head_rows(self, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """Hold some rows of the head's tensors, for `logits` of these tokens alone."""
        module = self._model.get_submodule(self._family.head)
        try:
            for leaf, value in rows.items():
                _assign(module, leaf, self._ready(value))
            yield
        finally:
            _drop(module)

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [batch, length, tokens] for what `finish` gave.

        Within `head`, of all of the vocabulary; within `head_rows`, of as many tokens.

        The model's own forward runs with a decoder that returns `hidden`: some cap their logits.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        def finished(*_: object, **__: object) -> object:
            output = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
            output.router_logits = None  # models with experts pass them on
            return output

        self._decoder.forward = finished
        try:
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits

    def _with_stand_in(self, stand_in: StandIn, attempt: Callable[[], Tensor]) -> Tensor:
        """Run `attempt` with the blocks replaced.

        Some decoders take a block's output as it is, some its first element; nothing says which.
        A hidden state that comes back changed tells that the guess was wrong.
        """
        for in_tuple in (False, True):
            self._replace_forwards(stand_in, in_tuple=in_tuple)
            try:
                return attempt()
            except _OtherReturn:
                continue
            finally:
                for block in self._blocks:
                    del block.forward
        raise LlmoptError(f"{self._family.id}: the model changes hidden states between its blocks")

    def _replace_forwards(self, stand_in: StandIn, *, in_tuple: bool) -> None:
        last: list[Tensor] = []

        def forward(block: int) -> Forward:
            def run(hidden: Tensor, /, *arguments: object, **keywords: object) -> object:
                if last and last[-1] is not hidden:
                    raise _OtherReturn
                last[:] = [stand_in(block, hidden, (arguments, keywords))]
                return (last[0],) if in_tuple else last[0]

            return run

        for index, block in enumerate(self._blocks):
            block.forward = forward(index)

    def _fill(self, path: str, weights: LiveWeights) -> None:
        """Read the weights of a module of the model."""
        module = self._model.get_submodule(path)
        parameters = {name for name, _ in module.named_parameters()}
        for name in module.state_dict():
            full = self._naming.name(f"{path}.{name}")
            if name not in parameters and not weights.has(full):
                continue  # a buffer that the config determines
            value = weights.read(full)
            owner, _, leaf = name.rpartition(".")
            _assign(module.get_submodule(owner), leaf, self._ready(value))

    def _path(self, block: int) -> str:
        return f"{self._family.base}.{self._family.blocks}.{block}"

    def _inside(self, block: int, name: str) -> str:
        """A tensor's name within its block."""
        owner, _, leaf = name.rpartition(".")
        return f"{self._naming.module(owner)}.{leaf}".removeprefix(self._path(block) + ".")

    def _ready(self, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype).contiguous()


def _assign(owner: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _drop(module: nn.Module) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty_like(parameter, device="meta")
                part._parameters[name] = nn.Parameter(empty, requires_grad=False)
