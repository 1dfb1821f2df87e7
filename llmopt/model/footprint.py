"""What a step needs of the machine, and how it keeps to that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What a step's time follows from.

    products: operations (multiply and add are two) of float32 matrix products. statistics: those of
    Hessians, which a processor with AMX computes from bfloat16 operands. solving: operations of
    methods that choose codes. moved: bytes read from and written to disk.
    """

    products: float = 0.0
    statistics: float = 0.0
    solving: float = 0.0
    moved: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes a step needs at its peak, beside what the system has mapped and can drop."""

    memory_bytes: int
    disk_bytes: int
    effort: Effort = Effort()


NOTHING = Footprint(0, 0)


@dataclass(frozen=True)
class Arrangement:
    """How a step keeps to its memory. It enters no key: results are the same.

    activations_in_file: between blocks, activations lie in a file rather than in memory.
    whole_models: models are evaluated whole, rather than a block at a time (metrics differ by less
    than 1e-5).
    """

    activations_in_file: bool = False
    whole_models: bool = True


IN_MEMORY = Arrangement()
