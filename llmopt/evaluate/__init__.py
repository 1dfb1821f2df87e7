"""What is measured of a model, and what gates say to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the table names is held to its Protocol
    from llmopt.evaluate import codes, divergence, size
    from llmopt.evaluate.probe import Probe

    _PROBES: tuple[Probe, ...] = (codes, divergence, size)
