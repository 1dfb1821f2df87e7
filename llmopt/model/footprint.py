"""What a step needs of the machine, and how it keeps to that."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """Bytes a step needs at its peak, beside what the system has mapped and can drop."""

    memory_bytes: int
    disk_bytes: int


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

    @property
    def words(self) -> str:
        """Where that is not the usual."""
        said = (
            ("activations in a file", self.activations_in_file),
            ("a block of each model at a time", not self.whole_models),
        )
        return ", ".join(words for words, so in said if so)


IN_MEMORY = Arrangement()
