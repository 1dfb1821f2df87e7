"""Number formats: which values a weight may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the table names is held to its Protocol
    from llmopt.grids import fp8, integer, nf4
    from llmopt.grids.base import Grid

    _GRIDS: tuple[Grid, ...] = (fp8, integer, nf4)
