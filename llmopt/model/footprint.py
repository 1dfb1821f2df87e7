"""What a step needs of the machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """Bytes a step needs at its peak, beside what the system has mapped and can drop."""

    memory_bytes: int
    disk_bytes: int


NOTHING = Footprint(0, 0)
