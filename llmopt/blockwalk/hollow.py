"""Modules without weights: putting some in, taking them out, standing in for their outputs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Forward(Protocol):
    """A module's forward, whatever it is called with beside hidden states."""

    def __call__(self, hidden: Tensor, /, *arguments: object, **keywords: object) -> object: ...


class BlockForward(Protocol):
    """A block's forward."""

    def __call__(self, *arguments: object, **keywords: object) -> object: ...


def output_of(hidden: Tensor) -> object:
    """What a decoder returns; all else that models pass on of it is None."""
    from transformers.modeling_outputs import BaseModelOutput

    class Output(BaseModelOutput):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return Output(last_hidden_state=hidden)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two hidden states are one, or equal."""
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def assign(owner: nn.Module, leaf: str, value: Tensor) -> None:
    """Give a module a buffer or a parameter."""
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def drop_weights(module: nn.Module) -> None:
    """Leave nothing of a module's parameters but their shapes."""
    for part in module.modules():
        _drop_own(part)


def _drop_own(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            empty = torch.empty_like(parameter, device="meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)


def drop_outside(module: nn.Module, part: str) -> None:
    """The same, but for one of its parts, by its path."""
    _drop_own(module)
    for name, child in module.named_children():
        if name == part:
            continue
        if part.startswith(f"{name}."):
            drop_outside(child, part.removeprefix(f"{name}."))
        else:
            drop_weights(child)
