"""Correlated inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def activations(tokens: int, cols: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
    return torch.randn(tokens, cols, generator=generator) @ mixing


def hessian_of(x: Tensor) -> Tensor:
    return x.T @ x / x.shape[0]
