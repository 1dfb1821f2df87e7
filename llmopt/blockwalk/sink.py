"""Where the walk's results go, and where a resumed walk finds them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import StoredTensor
from llmopt.formats.safetensors import ShardWriter, read_tensor
from llmopt.grids.base import QuantizedTensor


class Codec(Protocol):
    """A format that stores quantized linears as several tensors; see formats.gptq.Codec."""

    def accepts(self, tensor: QuantizedTensor) -> str | None:
        """Why the tensor cannot be stored exactly, None where it can."""

    def pack(self, tensor: QuantizedTensor) -> dict[str, Tensor]:
        """The tensors to store, by the suffix of their names."""

    def unpack(self, stored: Mapping[str, Tensor]) -> QuantizedTensor:
        """A tensor that decodes to the same values as the one packed."""


@dataclass
class Results:
    """What a walk changed in one block, or in the head.

    quantized: by module name. dense: by tensor name, in the checkpoint's orientation and dtype.
    records: what operations noted for the ledger, by module name; JSON values.
    """

    quantized: dict[str, QuantizedTensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)


class Sink:
    """Writes results through a codec into a ShardWriter, a part at a time."""

    def __init__(self, writer: ShardWriter, codec: Codec | None = None) -> None:
        self.writer = writer
        self._codec = codec

    def write(self, part: str, results: Results) -> None:
        """Finish a part: from here on a killed walk goes on after it."""
        tensors = dict(results.dense)
        for module, tensor in results.quantized.items():
            packed = self._checked(module, tensor).pack(tensor)
            tensors |= {f"{module}.{suffix}": value for suffix, value in packed.items()}
        note = {"quantized": list(results.quantized), "records": results.records}
        self.writer.write(part, tensors, json.dumps(note))

    def read(self, part: str) -> Results:
        """The results in a finished part, decoding to the same values as those written."""
        headers = self.writer.headers(part)
        tensors = {name: read_tensor(header) for name, header in headers.items()}
        note = self._note(part)
        results = Results(records=note["records"])
        for module in note["quantized"]:
            names = [name for name in tensors if name.rpartition(".")[0] == module]
            stored = {name.rpartition(".")[2]: tensors.pop(name) for name in names}
            assert self._codec is not None
            results.quantized[module] = self._codec.unpack(stored)
        results.dense = tensors
        return results

    def summary(self, part: str) -> tuple[set[str], dict[str, Any]]:
        """The modules whose weights a finished part replaces, and its records."""
        note = self._note(part)
        modules = {name.rpartition(".")[0] for name in self.writer.headers(part)}
        return modules, note["records"]

    def keep(self, name: str, tensor: StoredTensor) -> None:
        """Pass a tensor of the checkpoint on as it is."""
        if tensor.header is not None:
            self.writer.keep(name, tensor.header)
        else:
            self.writer.write(f"kept-{name}", {name: tensor.read()})

    def _note(self, part: str) -> dict[str, Any]:
        note: dict[str, Any] = json.loads(self.writer.read_note(part))
        return note

    def _checked(self, module: str, tensor: QuantizedTensor) -> Codec:
        if self._codec is None:
            raise LlmoptError(f"{module} was quantized, but the output format holds plain tensors")
        reason = self._codec.accepts(tensor)
        if reason is not None:
            raise LlmoptError(f"{module} cannot be written: {reason}")
        return self._codec
