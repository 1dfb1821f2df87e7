"""Whether what was written is what is said of it: the last look before a model is published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmopt.errors import LlmoptError
from llmopt.formats.quantization import read_contents
from llmopt.model.change import TensorFate
from llmopt.model.contents import LogicalTensor
from llmopt.model.ledger import LedgerEntry
from llmopt.specs import FORMATS
from llmopt.specs.formats import PLAIN
from llmopt.specs.ggml import GGML_TYPES


def checked(
    folder: Path, ledger: Sequence[LedgerEntry], fates: Iterable[TensorFate], format_id: str
) -> list[LedgerEntry]:
    """The ledger of the model in `folder`, with the bits that its headers say.

    LlmoptError where headers and config say anything else than the ledger does: a tensor that is
    missing or that nothing was said of, another shape, another layout; or where a plain tensor
    takes another size than was planned.
    """
    found = read_contents(folder).tensors
    said = {entry.name: entry for entry in ledger if entry.action not in ("tied", "left out")}
    if strange := sorted(found.keys() ^ said.keys()):
        unsaid = strange[0] in found
        raise _bug(strange[0], "was written, and nothing is said of it" if unsaid else "is missing")
    for name, entry in said.items():
        _check(entry, found[name], format_id)
    for fate in fates:
        tensor = found.get(fate.name)
        if tensor and fate.to is None and _label(tensor, format_id) is None:
            _check_size(fate, tensor)
    return [_measured(entry, found.get(entry.name)) for entry in ledger]


def _check(entry: LedgerEntry, tensor: LogicalTensor, format_id: str) -> None:
    shape = tuple(entry.shape or ())
    if tensor.shape not in (shape, shape[::-1]):  # a Conv1D stores its transpose
        raise _bug(entry.name, f"has the shape {list(tensor.shape)}, not {list(shape)}")
    label, said = _label(tensor, format_id), _said(entry.to, format_id)
    if label != said:
        raise _bug(entry.name, f"is {label or 'plain'}, not {said or 'plain'}")


def _check_size(fate: TensorFate, tensor: LogicalTensor) -> None:
    if tensor.nbytes != fate.bytes:
        raise _bug(fate.name, f"takes {tensor.nbytes:,} bytes, not {fate.bytes:,}")


def _label(tensor: LogicalTensor, format_id: str) -> str | None:
    """What a tensor is stored as, None for plain numbers."""
    if tensor.layout is not None:
        return _said(tensor.layout.label, format_id)
    spec = GGML_TYPES.get(tensor.dtype)
    return tensor.dtype if spec and spec.block > 1 else None


def _said(label: str | None, format_id: str) -> str | None:
    """As much of a layout's label as a config of the format says."""
    if label is None:
        return None
    if format_id != PLAIN and not FORMATS[format_id].says_symmetric:
        label = label.replace(" asym", " sym")
    weights = label.partition(",")[0]
    return weights if "x" in weights else label  # of blocks, engines settle the activations


def _measured(entry: LedgerEntry, tensor: LogicalTensor | None) -> LedgerEntry:
    if tensor is None or entry.bits_per_weight is None:
        return entry
    bits = round(tensor.nbytes * 8 / math.prod(tensor.shape), 4)
    return entry.model_copy(update={"bits_per_weight": bits})


def _bug(name: str, what: str) -> LlmoptError:
    return LlmoptError(
        f"{name} {what}: llmopt has written something else than it says, and publishes nothing",
        hint="please report this, it is a mistake of llmopt's",
    )
