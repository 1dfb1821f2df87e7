"""A tensor on a device that this machine need not have."""

from __future__ import annotations

import torch
from torch import Tensor


class Away(Tensor):
    """On another device, as far as it says; moved to the CPU it is a plain tensor.

    The device is "meta", so that results can be moved there.
    """

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("meta")

    def to(self, place: torch.device) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor) if place.type == "cpu" else self
