"""A model that exists in shape only, into which one block's weights at a time are put.

It is built by transformers from the config, on torch's meta device, so attention, masks and rotary
embeddings are the model's own. What a block is called with is learned from the model, too: its
decoder runs once over a batch with every block replaced by a recorder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmopt.blockwalk.calls import BlockCall, Calls, Handed, Seen, StandIn
from llmopt.blockwalk.hollow import (
    BlockForward,
    assign,
    drop_outside,
    drop_weights,
    is_same,
    output_of,
)
from llmopt.blockwalk.products import Product, Products
from llmopt.blockwalk.weights import LiveWeights
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.empty_model import empty_model
from llmopt.formats.stacks import Places, StackPlace, assembled


class _Stopped(Exception):
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class _OtherReturn(Exception):
    pass


class Skeleton:
    """The decoder of a checkpoint without its weights.

    `fill` puts a block's weights in and `drop` takes them out; `call` runs a filled block on the
    hidden states [batch, length, width] of the batch that `turn_to` said, and `embed` saw before.
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
        for module in self._model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self._calls, self._batch = Calls(), 0
        self._places = Places(checkpoint.naming)

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

    def holder(self, name: str) -> nn.Module:
        """The module that a module is in."""
        return self._model.get_submodule(self._naming.module(name).rpartition(".")[0])

    def width(self, linear: str) -> int:
        """How many input channels a linear has."""
        if (place := self._places.find(linear)) is not None:
            return place.of(self._parameter(place)).shape[1]
        weight = self.module(linear).weight
        assert isinstance(weight, Tensor)
        return weight.shape[0 if self._family.conv1d and linear != self._naming.head else 1]

    def nbytes(self, block: int) -> int:
        """What a block's weights take when they are filled in."""
        return sum(weight.nbytes for weight in self._blocks[block].parameters())

    def fill(self, block: int, weights: LiveWeights) -> None:
        """Read a block's weights."""
        self._fill(self._path(block), weights)

    def drop(self, block: int) -> None:
        """Forget a block's weights."""
        drop_weights(self._blocks[block])

    def put(self, name: str, value: Tensor) -> None:
        """Give a tensor of a filled block another value."""
        owner, _, leaf = name.rpartition(".")
        if (place := self._places.find(owner)) is None:
            assign(self.module(owner), leaf, self._ready(value))
            return
        with torch.no_grad():
            place.of(self._parameter(place)).copy_(self._out_in(owner, value))

    def turn_to(self, batch: int) -> None:
        """What is called from here on is called on this batch."""
        self._batch = batch

    @property
    def carries_state(self) -> bool:
        """Whether blocks hand later ones more than hidden states, once `embed` has seen a batch."""
        return self._calls.carry_state

    def call(
        self, block: int, hidden: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The block's output, with these tensors in place of those that were filled in."""
        module, (call, handed) = self._blocks[block], self._calls.of(self._batch, block)
        inside = self._inside(block, weights or {})
        arguments, keywords = call.given(hidden, handed)
        if inside:
            output = functional_call(module, inside, arguments, keywords)
        else:
            output = module(*arguments, **keywords)
        if not isinstance(output, tuple | list):
            return output  # type: ignore[no-any-return]
        self._calls.hand(self._batch, block, output[1:])
        result: Tensor = output[0]
        return result

    @contextmanager
    def watched(self, linears: Mapping[str, Seen]) -> Iterator[None]:
        """While it lasts, what flows into each of these linears is shown when it does."""
        places = {name: place for name in linears if (place := self._places.find(name)) is not None}
        by_matrix: dict[tuple[str, int], list[Seen]] = defaultdict(list)
        for name, place in places.items():
            by_matrix[place.parameter, place.expert].append(linears[name])

        def seen(product: Product) -> None:
            for show in by_matrix.get((product.path, product.index or 0), ()):
                show(product.x)

        def hook(show: Seen) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, given: show(given[0])

        with ExitStack() as stack:
            for name, show in linears.items():
                if name not in places:
                    handle = self.module(name).register_forward_pre_hook(hook(show))
                    stack.callback(handle.remove)
            if places:
                parameters = {p.parameter: self._parameter(p) for p in places.values()}
                stack.enter_context(Products(parameters, seen))
            yield

    @contextmanager
    def surroundings(self, weights: LiveWeights, ids: Tensor | None = None) -> Iterator[None]:
        """Hold what is not in any block: norms and, of the token embedding, the rows of `ids`.

        ids: int64 [n], each once, in ascending order; `embed` is then for these tokens alone.
        Without, all tokens have the same row of zeros.
        """
        tables = (self._family.embedding, *self._family.tables)
        skipped = (f"{self._family.blocks}.", *(f"{table}." for table in tables))
        try:
            for name in self._decoder.state_dict():
                if not name.startswith(skipped):
                    self._fill_tensor(f"{self._family.base}.{name}", weights)
            with ExitStack() as stack:
                for table in tables:
                    stack.enter_context(self._rows_of(table, weights, ids))
                yield
        finally:
            drop_outside(self._decoder, self._family.blocks)

    @contextmanager
    def _rows_of(self, table: str, weights: LiveWeights, ids: Tensor | None) -> Iterator[None]:
        """An embedding with these rows alone; it is called with their places among them."""
        path = f"{self._family.base}.{table}"
        module = self._model.get_submodule(path)
        assert isinstance(module, nn.Embedding)
        if ids is None:
            known = torch.zeros(1, dtype=torch.int64, device=self.device)
            rows = torch.zeros(1, module.embedding_dim)
        else:
            known = ids.to(self.device)
            rows = weights.rows(self._naming.name(f"{path}.weight"), ids)

        def place(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return torch.searchsorted(known, given[0]), *given[1:]

        assign(module, "weight", self._ready(rows))
        # which row stands for no token matters where gradients flow alone
        padding, module.padding_idx = module.padding_idx, None
        hook = module.register_forward_pre_hook(place)
        try:
            yield
        finally:
            hook.remove()
            module.padding_idx = padding

    def embed(self, tokens: Tensor, batch: int) -> Tensor:
        """What flows into the first block, for int64 [batch, length]; within `surroundings`.

        How blocks are called for this batch is known from then on.
        """
        calls: list[BlockCall] = []

        def record(block: int, hidden: Tensor, call: BlockCall) -> Tensor:
            calls.append(call)
            if block == len(self._blocks) - 1:
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
        self._calls.note(batch, tokens.shape[0], calls)
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """What flows into the head when `hidden` comes out of the last block.

        Runs in `surroundings`, which need not hold rows of the embedding.
        """
        nothing = torch.zeros(*hidden.shape[:2], dtype=torch.int64, device=self.device)

        def skip(block: int, given: Tensor, _: BlockCall) -> Tensor:
            return hidden if block == 0 else given

        def attempt() -> Tensor:
            output: Tensor = self._decoder(input_ids=nothing, use_cache=False)[0]
            if output.shape[:2] != hidden.shape[:2]:
                raise _OtherReturn
            return output

        return self._with_stand_in(skip, attempt)

    @contextmanager
    def head(self, weights: LiveWeights) -> Iterator[None]:
        """Hold the head's weight, for `logits`."""
        with self._beside_head(weights):
            for leaf in self._model.get_submodule(self._family.head).state_dict():
                self._fill_tensor(f"{self._family.head}.{leaf}", weights)
            yield

    @contextmanager
    def head_rows(self, rows: Mapping[str, Tensor], weights: LiveWeights) -> Iterator[None]:
        """Hold some rows of the head's tensors, for `logits` of these tokens alone."""
        module = self._model.get_submodule(self._family.head)
        with self._beside_head(weights):
            for leaf, value in rows.items():
                assign(module, leaf, self._ready(value))
            yield

    @contextmanager
    def _beside_head(self, weights: LiveWeights) -> Iterator[None]:
        """Hold what is neither in the decoder nor the head."""
        inside = (f"{self._family.base}.", f"{self._family.head}.")
        others = [name for name in self._model.state_dict() if not name.startswith(inside)]
        try:
            for name in others:
                self._fill_tensor(name, weights)
            yield
        finally:
            drop_outside(self._model, self._family.base)

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [batch, length, tokens] for what `finish` gave.

        Within `head`, of all of the vocabulary; within `head_rows`, of as many tokens.

        The model's own forward runs with a decoder that returns `hidden`: some cap their logits.
        """

        def finished(*_: object, **__: object) -> object:
            return output_of(hidden)

        self._decoder.forward = finished
        try:
            logits: Tensor = self._model(inputs_embeds=hidden, use_cache=False).logits
        finally:
            del self._decoder.forward
        return logits

    def _with_stand_in(self, stand_in: StandIn, attempt: Callable[[], Tensor]) -> Tensor:
        """Run `attempt` with the blocks replaced.

        Some decoders take a block's output as it is, some its first element, some unpack two;
        nothing says which. A hidden state that comes back changed tells that the guess was wrong.
        """
        problem: ValueError | None = None
        for values in range(4):
            self._replace_forwards(stand_in, values)
            try:
                return attempt()
            except _OtherReturn:
                continue
            except ValueError as error:  # another number of values is unpacked
                problem = error
            finally:
                for block in self._blocks:
                    del block.forward
        if problem is not None:
            raise problem
        raise LlmoptError(f"{self._family.id}: the model changes hidden states between its blocks")

    def _replace_forwards(self, stand_in: StandIn, values: int) -> None:
        last: list[Tensor] = []

        def forward(block: int) -> BlockForward:
            def run(*arguments: object, **keywords: object) -> object:
                hidden, call = BlockCall.of(arguments, keywords)
                if last and not is_same(last[-1], hidden):
                    raise _OtherReturn
                last[:] = [stand_in(block, hidden, call)]
                return (last[0], *map(Handed, range(values - 1))) if values else last[0]

            return run

        for index, block in enumerate(self._blocks):
            block.forward = forward(index)

    def _fill(self, path: str, weights: LiveWeights) -> None:
        """Read the weights of a module of the model."""
        for name in self._model.get_submodule(path).state_dict():
            self._fill_tensor(f"{path}.{name}", weights)

    def _fill_tensor(self, path: str, weights: LiveWeights) -> None:
        owner, _, leaf = path.rpartition(".")
        module = self._model.get_submodule(owner)
        block = self._naming.block_of(self._naming.name(path))
        places = [p for p in self._places.of_block(block).values() if p.parameter == path]
        if places:
            value = assembled(
                module._parameters[leaf], places,  # type: ignore[arg-type]
                lambda name: self._out_in(name, weights.read(f"{name}.weight")),
                dtype=self._dtype, device=self.device,
            )  # fmt: skip
        elif (parts := self._naming.parts(path)) and all(map(weights.has, parts)):
            value = torch.cat([weights.read(part) for part in parts])
        else:
            full = self._naming.name(path)
            if leaf in module._buffers and not weights.has(full):
                return  # a buffer that the config determines
            value = weights.read(full)
        assign(module, leaf, self._ready(value))

    def _out_in(self, linear: str, value: Tensor) -> Tensor:
        return value.T if self._naming.transposed(linear) else value

    def _parameter(self, place: StackPlace) -> Tensor:
        return self._model.get_parameter(place.parameter)

    def _path(self, block: int) -> str:
        return f"{self._family.base}.{self._family.blocks}.{block}"

    def _inside(self, block: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names within a block."""
        found: dict[str, Tensor] = {}
        start = self._path(block) + "."
        for name, value in weights.items():
            owner, _, leaf = name.rpartition(".")
            if (place := self._places.find(owner)) is None:
                found[f"{self._naming.module(owner)}.{leaf}".removeprefix(start)] = value
                continue
            inner = place.parameter.removeprefix(start)
            if inner not in found:
                found[inner] = self._parameter(place).detach().clone()
            place.of(found[inner]).copy_(self._out_in(owner, value))
        return found

    def _ready(self, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return value.to(self.device, dtype).contiguous()
