"""Where a scale of linears' inputs can move to: tried, on a tiny model, and kept where it holds.

A norm's gains are divided by a scale and all that reads its output is multiplied by it, or the
outputs of a linear and the inputs of what it feeds. If the logits stay, the two may be scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmopt.blockwalk.products import Product
from llmopt.discovery.running import Look, logits_of
from llmopt.specs.family import Fold

#: how close logits stay, of their spread: a wrong fold changes them by about as much as that
_CLOSE = 1e-3
#: weights of a linear [out, in], views of all that are meant: one, or one for each expert
Views = Callable[[str], Sequence[Tensor]]


@dataclass(frozen=True)
class Prober:
    """One block of a model.

    inputs: by linear or router, path inside the block, what flowed into it. views: their weights.
    inlets: the linears that share an input.
    """

    model: Any
    block: nn.Module
    tokens: Tensor
    inputs: Mapping[str, Sequence[Tensor]]
    views: Views
    inlets: Sequence[tuple[str, ...]]

    def folds(self) -> list[Fold]:
        """Those that hold, as specs.folds has them."""
        wanted, norms = self._run()
        found = [fold for path, output in norms.items() for fold in self._norm(path, output)]
        found += self._linears()
        return [fold for fold in found if self._holds(fold, wanted)]

    def _run(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits, and what came out of each norm."""
        outputs: dict[str, Tensor] = {}

        def note(path: str) -> Look:
            def hook(_: nn.Module, __: object, output: object) -> None:
                if isinstance(output, Tensor):
                    outputs[path] = output

            return hook

        looks = {
            part: note(path)
            for path, part in self.block.named_modules()
            if part._parameters.get("weight") is not None and part.get_parameter("weight").ndim == 1
        }
        return logits_of(self.model, self.tokens, looks), outputs

    def _norm(self, path: str, output: Tensor) -> Iterator[Fold]:
        """The folds of a norm that could be: of gains as they are, and of 1 + gains."""
        rows = output.reshape(-1, output.shape[-1])
        readers = [name for name, xs in self.inputs.items() if _reads(xs, rows)]
        if readers:
            for offset in (0.0, 1.0):
                yield Fold(source=path, readers=tuple(readers), offset=offset)

    def _linears(self) -> Iterator[Fold]:
        """Pairs whose shapes fit."""
        for readers in self.inlets:
            columns = self.views(readers[0])[0].shape[1]
            for inlet in self.inlets:
                for source in inlet if inlet != readers else ():
                    same_experts = ("*" in source) == ("*" in readers[0])
                    if same_experts and self.views(source)[0].shape[0] == columns:
                        yield Fold(source=source, readers=readers, linear=True)

    def _holds(self, fold: Fold, wanted: Tensor) -> bool:
        with self._folded(fold):
            found = logits_of(self.model, self.tokens)
        with self._folded(fold, alone=True):
            matters = logits_of(self.model, self.tokens)
        spread = _CLOSE * wanted.std()
        stays = bool((found - wanted).abs().max() <= spread)
        return stays and bool((matters - wanted).abs().max() > spread)

    @contextmanager
    def _folded(self, fold: Fold, *, alone: bool = False) -> Iterator[None]:
        """The model with a fold in it; `alone`: with nothing that makes up for it."""
        size = self.views(fold.readers[0])[0].shape[1]
        scale = torch.linspace(0.6, 1.6, size)[torch.randperm(size, generator=_generator())]
        if fold.linear:  # what an activation between the two lets pass is not what all do
            scale[::2] *= -1
        sources = list(self._sources(fold))
        weights = [w for name in fold.readers for w in self.views(name) if not alone]
        changed = [each for each, _ in sources] + weights
        kept = [each.clone() for each in changed]
        with torch.no_grad():
            for each, offset in sources:
                shape = (-1, *[1] * (each.ndim - 1))
                each.copy_((each + offset) / scale.view(shape) - offset)
            for weight in weights:
                weight.mul_(scale)
        yield
        with torch.no_grad():
            for each, before in zip(changed, kept, strict=True):
                each.copy_(before)

    def _sources(self, fold: Fold) -> Iterator[tuple[Tensor, float]]:
        """What is divided, and what is added to it before: gains or rows of weights, and biases."""
        if fold.linear:
            yield from ((each, 0.0) for each in self.views(fold.source))
        else:
            gain = self.block.get_parameter(f"{fold.source}.weight").data
            yield gain, fold.offset
        if "*" not in fold.source:
            bias = getattr(self.block.get_submodule(fold.source), "bias", None)
            if isinstance(bias, Tensor):
                yield bias.data, 0.0


def _reads(inputs: Sequence[Tensor], rows: Tensor) -> bool:
    """Whether all that flowed in was rows of a tensor [n, width], in whatever order."""
    for x in inputs:
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[1] != rows.shape[1] or not len(flat):
            return False
        if not all(bool((rows == row).all(1).any()) for row in (flat[0], flat[-1])):
            return False
    return bool(inputs)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs_of(
    products: Sequence[Product], names: Callable[[Product], Sequence[str]]
) -> dict[str, list[Tensor]]:
    """What flowed into each linear, by the names that products have."""
    found: dict[str, list[Tensor]] = {}
    for product in products:
        for name in names(product):
            found.setdefault(name, []).append(product.x)
    return found
