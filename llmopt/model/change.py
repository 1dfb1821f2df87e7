"""What becomes of each tensor of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmopt.model.layout import Layout
from llmopt.model.ledger import Action


@dataclass(frozen=True)
class TensorFate:
    """One tensor's future. `quantize` is None where it is kept; `why` says why then.

    `name` is the tensor's name in what will be written, `shape` its shape as stored, and
    [outputs, inputs] for a linear whatever way the checkpoint stores it. It takes `stored_bytes`
    on disk now, and `bytes` then. `options` are what a budget may choose among; as long as it has
    not, `quantize` stands for them and `bytes` is a share of the target. `decoded`: it is quantized
    now, and will be plain. `held`: the layout of what came quantized, and stays so.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    bytes: int
    quantize: Layout | None
    why: str
    options: tuple[Layout, ...] = ()
    decoded: bool = False
    held: Layout | None = None

    @property
    def to(self) -> str | None:
        """What it is stored as where that is no plain numbers."""
        layout = self.quantize or self.held
        return layout.label if layout else None

    @property
    def action(self) -> Action:
        """What the ledger will call it; a transform may yet fold scales into what is kept."""
        if self.quantize is not None:
            return "quantized"
        if not self.bytes:
            return "left out" if self.stored_bytes else "tied"
        return "decoded" if self.decoded else "kept"

    def as_dict(self) -> dict[str, Any]:
        label = self.quantize.label if self.quantize else None
        held = self.held.label if self.held else None
        labels = [option.label for option in self.options]
        found = asdict(self) | {"quantize": label, "options": labels, "action": self.action}
        found["held"] = held
        del found["decoded"]
        return found
