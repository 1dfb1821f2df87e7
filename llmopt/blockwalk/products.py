"""What one forward shows: which weights are multiplied with what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Given: TypeAlias = "tuple[object, ...]"


class _Function(Protocol):
    """What torch gives to a mode."""

    def __call__(self, *args: object, **kwargs: object) -> object: ...


_LINEAR: frozenset[object] = frozenset({nn.functional.linear})
_PRODUCTS: frozenset[object] = frozenset(
    {
        torch.matmul,
        torch.mm,
        torch.bmm,
        Tensor.matmul,
        Tensor.mm,
        Tensor.bmm,
        Tensor.__matmul__,
    }
)
_ADDED_PRODUCTS: frozenset[object] = frozenset(
    {torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm}
)


@dataclass(frozen=True)
class Product:
    """x @ w, where w is a parameter, or a part of one.

    path: the parameter's, in the model. index: which of the matrices of a parameter with more than
    two dimensions, None where it has two. transposed: whether it is stored as [in, out].
    x: [..., in], as it was. turned: it was the other way round, w.T @ x.T, as no linear has it.
    """

    path: str
    index: int | None
    transposed: bool
    x: Tensor
    turned: bool = False


class Products(TorchFunctionMode):
    """Tells `seen` of each product with one of these parameters while the context lasts."""

    def __init__(self, parameters: Mapping[str, Tensor], seen: Callable[[Product], None]) -> None:
        super().__init__()
        self._seen = seen
        self._owners = {
            p.untyped_storage().data_ptr(): (path, p)
            for path, p in parameters.items()
            if p.ndim > 1
        }

    def __torch_function__(
        self,
        func: _Function,
        types: Sequence[type],
        args: _Given = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        for turned, (x, w) in enumerate(_factors(func, args, given)):
            for product in self._products(x, w, turned=bool(turned)):
                self._seen(product)
        return func(*args, **given)

    def _products(self, x: Tensor, w: Tensor, *, turned: bool) -> Iterator[Product]:
        """x [..., in] and w [..., in, out], as far as w is a parameter's."""
        owner = self._owners.get(w.untyped_storage().data_ptr())
        if owner is None or w.ndim < 2:
            return
        path, parameter = owner
        if not _is_view_of(w, parameter):
            return
        transposed = w.stride(-1) == 1 and (w.shape[-2] == 1 or w.stride(-2) != 1)
        if parameter.ndim == 2:
            yield Product(path, None, transposed, x, turned)
            return
        if parameter.ndim != 3:
            return
        first = (w.storage_offset() - parameter.storage_offset()) // parameter.stride(0)
        if w.ndim == 2:
            yield Product(path, first, transposed, x)
        elif w.ndim == 3 and x.ndim == 3 and x.shape[0] == w.shape[0]:
            for place in range(w.shape[0]):
                # an expert gets zeros where a token is not its own
                own = x[place][(x[place] != 0).any(-1)]
                if len(own):
                    yield Product(path, first + place, transposed, own)


def _factors(
    func: _Function, args: _Given, kwargs: Mapping[str, object]
) -> list[tuple[Tensor, Tensor]]:
    """What may be (x, w), w [..., in, out], of a function that multiplies: either may be w."""
    if func in _LINEAR:
        x = args[0] if args else kwargs.get("input")
        w = args[1] if len(args) > 1 else kwargs.get("weight")
        return [(x, w.mT)] if isinstance(x, Tensor) and isinstance(w, Tensor) else []
    if func in _PRODUCTS and len(args) == 2:
        left, right = args
    elif func in _ADDED_PRODUCTS and len(args) == 3:
        left, right = args[1:]
    else:
        return []
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return []
    return [(left, right), (right.mT, left.mT)] if min(left.ndim, right.ndim) > 1 else []


def _is_view_of(w: Tensor, parameter: Tensor) -> bool:
    """Whether w has all of a matrix of the parameter, and no number twice."""
    sizes = {tuple(parameter.shape[-2:]), tuple(parameter.shape[-2:])[::-1]}
    if parameter.ndim == 2 and w.ndim > 2:
        return False
    return tuple(w.shape[-2:]) in sizes and 0 not in w.stride()[-2:]


@contextmanager
def block_under_way(blocks: Sequence[nn.Module]) -> Iterator[Callable[[], int | None]]:
    """What is given says which of these modules runs at the moment, None where none does."""
    running: list[int] = []
    hooks = []
    for index, block in enumerate(blocks):

        def enter(_: nn.Module, __: object, index: int = index) -> None:
            running.append(index)

        def leave(_: nn.Module, __: object, ___: object) -> None:
            running.pop()

        hooks += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    try:
        yield lambda: running[-1] if running else None
    finally:
        for hook in hooks:
            hook.remove()
