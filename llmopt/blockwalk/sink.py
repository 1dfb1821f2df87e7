"""Where the walk's results go, and where a resumed walk finds them again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import StoredTensor
from llmopt.formats.codec import Codec
from llmopt.formats.layout import layout_of
from llmopt.formats.safetensors import ShardWriter, read_tensor
from llmopt.grids.base import Quantized
from llmopt.model.layout import Layout


@dataclass
class PartResults:
    """What a walk changed in one block, or in the head.

    quantized: by module name. dense: by tensor name, in the checkpoint's orientation, and in its
    dtype once they are written.
    records: what operations noted for the ledger, by module name; JSON values.
    """

    quantized: dict[str, Quantized] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)


class Sink:
    """Writes results through a codec into a ShardWriter, a part at a time."""

    def __init__(self, writer: ShardWriter, codec: Codec | None = None) -> None:
        self.writer = writer
        self._codec = codec

    def write(self, part: str, results: PartResults) -> None:
        """Finish a part: from here on a killed walk goes on after it."""
        tensors = dict(results.dense)
        for module, tensor in results.quantized.items():
            packed = self._checked(module, tensor).pack(tensor)
            tensors |= {f"{module}.{suffix}": value for suffix, value in packed.items()}
        layouts = {name: asdict(layout_of(tensor)) for name, tensor in results.quantized.items()}
        note = {"quantized": layouts, "dense": list(results.dense), "records": results.records}
        self.writer.write(part, tensors, json.dumps(note))

    def read(self, part: str) -> PartResults:
        """The results in a finished part, decoding to the same values as those written."""
        headers = self.writer.headers(part)
        tensors = {name: read_tensor(header) for name, header in headers.items()}
        note = self._note(part)
        results = PartResults(records=note["records"])
        results.dense = {name: tensors.pop(name) for name in note["dense"]}
        for module, layout in note["quantized"].items():
            names = [name for name in tensors if name.startswith(module + ".")]
            stored = {name.removeprefix(module + "."): tensors.pop(name) for name in names}
            assert self._codec is not None
            results.quantized[module] = self._codec.unpack(stored, Layout(**layout))
        return results

    def summary(self, part: str) -> tuple[set[str], dict[str, Any]]:
        """The names of the tensors that a finished part replaces, and its records.

        A quantized linear counts as its weight.
        """
        note = self._note(part)
        return {*note["dense"], *(f"{name}.weight" for name in note["quantized"])}, note["records"]

    def keep(self, name: str, tensor: StoredTensor) -> None:
        """Pass a tensor of the checkpoint on as it is."""
        self.writer.keep(name, tensor.header)

    def _note(self, part: str) -> dict[str, Any]:
        note: dict[str, Any] = json.loads(self.writer.read_note(part))
        return note

    def _checked(self, module: str, tensor: Quantized) -> Codec:
        if self._codec is None:
            raise LlmoptError(f"{module} was quantized, but the output format holds plain tensors")
        reason = self._codec.accepts(tensor)
        if reason is not None:
            raise LlmoptError(f"{module} cannot be written: {reason}")
        return self._codec
