"""Where the tensors of a model lie on disk, whatever the container. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmopt.artifact import JsonObject
from llmopt.formats.gguf.order import Rearrangement
from llmopt.formats.side_files import SideFiles, side_files

#: bytes of an element of each dtype that a checkpoint may hold
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class TensorHeader:
    """Where one tensor lies: bytes [start, end) of `file`, row-major, little-endian.

    dtype: of safetensors, or a type in specs.ggml. shape: of what is read. stored_shape: what the
    file says of the shape, where a reader is to take it for another. arranged: how the file's
    tensor differs from what is read, None where it does not.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    stored_shape: tuple[int, ...] | None = None
    arranged: Rearrangement | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start

    @property
    def plain(self) -> bool:
        """Whether its bytes, copied, are the tensor; else they have to be read and written."""
        return self.arranged is None and self.dtype in DTYPE_BYTES


@dataclass(frozen=True)
class Headers:
    """A model folder without its data: its config and where its tensors lie.

    read_besides: names of files that say where, and are part of the weights like these.
    """

    folder: Path
    config: JsonObject
    tensors: dict[str, TensorHeader]
    read_besides: frozenset[str] = frozenset()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files as a whole."""
        return sum(file.stat().st_size for file in {t.file for t in self.tensors.values()})

    @property
    def side_files(self) -> SideFiles:
        """The files that came with the model, and which of them stay behind."""
        read = {tensor.file.name for tensor in self.tensors.values()}
        return side_files(self.folder, self.read_besides | read)
