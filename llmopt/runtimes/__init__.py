"""Ways to run an artifact, each on its real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the table names is held to its Protocol
    from llmopt.runtimes import llamacpp, torch
    from llmopt.runtimes.base import Runtime

    _RUNTIMES: tuple[Runtime, ...] = (llamacpp, torch)
