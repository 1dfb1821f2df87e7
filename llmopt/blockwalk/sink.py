"""Where the walk's results go, and where a resumed walk finds them again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import StoredTensor
from llmopt.formats.codec import Codec
from llmopt.formats.layout import layout_of
from llmopt.formats.safetensors import read_tensor
from llmopt.formats.shards import ShardWriter
from llmopt.grids.base import Quantized
from llmopt.model.layout import Layout

#: what a pass noted of a tensor for the ledger: JSON values
Record = dict[str, object]


@dataclass
class PartResults:
    """What a walk changed in one block, or in the head.

    quantized: by module name. dense: by tensor name, in the checkpoint's orientation, and in its
    dtype once they are written.
    records: by the name of a module or tensor.
    """

    quantized: dict[str, Quantized] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Note:
    """What a part file says of itself beside its tensors."""

    quantized: dict[str, Layout]
    dense: list[str]
    records: dict[str, Record]


class Sink:
    """Writes results through a codec into a ShardWriter, a part at a time."""

    def __init__(self, writer: ShardWriter, codec: Codec[Quantized] | None = None) -> None:
        self.writer = writer
        self._codec = codec

    def write(self, part: str, results: PartResults) -> None:
        """Finish a part: from here on a killed walk goes on after it."""
        tensors = dict(results.dense)
        for module, tensor in results.quantized.items():
            packed = self._checked(module, tensor).pack(tensor)
            tensors |= {f"{module}.{suffix}": value for suffix, value in packed.items()}
        layouts = {name: layout_of(tensor) for name, tensor in results.quantized.items()}
        note = _Note(quantized=layouts, dense=list(results.dense), records=results.records)
        self.writer.write(part, tensors, json.dumps(asdict(note)))

    def read(self, part: str) -> PartResults:
        """The results in a finished part, decoding to the same values as those written."""
        headers = self.writer.headers(part)
        tensors = {name: read_tensor(header) for name, header in headers.items()}
        note = self._note(part)
        results = PartResults(records=note.records)
        results.dense = {name: tensors.pop(name) for name in note.dense}
        for module, layout in note.quantized.items():
            names = [name for name in tensors if name.startswith(module + ".")]
            stored = {name.removeprefix(module + "."): tensors.pop(name) for name in names}
            assert self._codec is not None
            results.quantized[module] = self._codec.unpack(stored, layout)
        return results

    def summary(self, part: str) -> tuple[set[str], dict[str, Record]]:
        """The names of the tensors that a finished part replaces, and its records.

        A quantized linear counts as its weight.
        """
        note = self._note(part)
        return {*note.dense, *(f"{name}.weight" for name in note.quantized)}, note.records

    def keep(self, name: str, tensor: StoredTensor) -> None:
        """Pass a tensor of the checkpoint on as it is."""
        self.writer.keep(name, tensor.header)

    def _note(self, part: str) -> _Note:
        note = json.loads(self.writer.read_note(part))
        layouts = {module: Layout(**layout) for module, layout in note["quantized"].items()}
        return _Note(quantized=layouts, dense=note["dense"], records=note["records"])

    def _checked(self, module: str, tensor: Quantized) -> Codec[Quantized]:
        if self._codec is None:
            raise LlmoptError(f"{module} was quantized, but the output format holds plain tensors")
        reason = self._codec.accepts(tensor)
        if reason is not None:
            raise LlmoptError(f"{module} cannot be written: {reason}")
        return self._codec
