"""Which of the products in a block are of linears, and what these are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk.products import Product
from llmopt.discovery.names import Stack

#: linears of a block that share an input, as paths in it; `*` stands for an expert's number
Inlet = tuple[str, ...]


class BlockReader:
    """One block: which of the products in it are linears, and what they are called."""

    def __init__(
        self,
        model: Any,
        block: nn.Module,
        inside: str,
        stacks: Iterable[Stack],
        experts: set[int],
    ) -> None:
        self._model, self._block, self._inside = model, block, inside
        self._stacks = {s.path: s for s in stacks if s.path.startswith(inside)}
        self._experts = experts
        self.routers: set[str] = set()

    def inlets(self, products: Sequence[Product]) -> list[Inlet]:
        """The linears that share an input, in the order of computation."""
        groups: list[tuple[Tensor, list[str]]] = []
        known: set[str] = set()
        for product in products:
            names = [name for name in self.names(product) if name not in known]
            if not names:
                continue
            known.update(names)
            x = product.x.reshape(-1, product.x.shape[-1])
            same = (g for g in groups if g[0].shape == x.shape and torch.equal(g[0], x))
            if (group := next(same, None)) is not None:
                group[1].extend(names)
            else:
                groups.append((x, names))
        return [tuple(names) for _, names in groups]

    def names(self, product: Product) -> tuple[str, ...]:
        """The linears that a product is of, in this block; none for a router or what is none."""
        if not product.path.startswith(self._inside):
            return ()
        if product.path in self._stacks:
            stack = self._stacks[product.path]
            inner = product.path.removeprefix(self._inside)
            return tuple(stack.linears(inner))
        if product.index is not None or product.turned or not product.path.endswith(".weight"):
            return ()
        path = product.path.removesuffix(".weight")
        part = self._model.get_submodule(path)
        inner = path.removeprefix(self._inside)
        rows = part.weight.shape[1 if product.transposed else 0]
        if rows == 1 or (self._stacks and rows in self._experts):
            self.routers.add(inner)
            return ()
        plain = isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"
        return (inner,) if plain else ()

    def reading(self, product: Product) -> tuple[str, ...]:
        """All that a product reads: linears, and other matrices that are a module's weight."""
        found = self.names(product)
        plain = product.index is None and product.path.endswith(".weight")
        if found or not plain or not product.path.startswith(self._inside):
            return found
        return (product.path.removesuffix(".weight").removeprefix(self._inside),)

    def views(self, name: str) -> list[Tensor]:
        """The weights [out, in] of a linear, or of the same of all experts."""
        for path, stack in self._stacks.items():
            linears = stack.linears(path.removeprefix(self._inside))
            if name in linears:
                parameter = self._model.get_parameter(path).data
                return [stack.of(matrix, linears.index(name)) for matrix in parameter]
        part = self._block.get_submodule(name)
        weight = part.weight.data
        assert isinstance(weight, Tensor)
        return [weight.T if type(part).__name__ == "Conv1D" else weight]

    def parameters(self, inlet: Inlet) -> Iterator[Tensor]:
        """The parameters that hold these linears."""
        for name, p in self._block.named_parameters():
            if not set(inlet).isdisjoint(self._linears_in(name)):
                yield p

    def _linears_in(self, parameter: str) -> list[str]:
        """Those that a parameter of the block holds, if it is one of linears."""
        stack = self._stacks.get(self._inside + parameter)
        return stack.linears(parameter) if stack else [parameter.removesuffix(".weight")]
