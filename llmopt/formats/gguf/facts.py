"""What a GGUF file says of its model, checked as it is asked for. No torch."""

from __future__ import annotations

import math
import re
import struct
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import GgufFile, GgufTensor

#: what float32 holds
_LARGEST = 3.4e38


class Facts:
    """The metadata of the architecture, by keys without its name, and the tensors."""

    def __init__(self, gguf: GgufFile) -> None:
        self.gguf = gguf

    @property
    def architecture(self) -> str:
        return self.gguf.architecture

    def get(self, key: str) -> Any:
        """The value as it is, None where there is none."""
        return self.gguf.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; the one of all blocks where the file lists them."""
        value = self.get(key)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if value is None and default is not None:
            return default
        if type(value) is not int or not 0 < value < 1 << 32:
            raise self.wrong(key, value)
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A float32, in the fewest digits that stand for it."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, float) or not abs(value) < _LARGEST:
            raise self.wrong(key, value)
        return shortest(value)

    def wrong(self, key: str, value: Any) -> RequestError:
        """What is raised for a value that is of no use."""
        name, given = self.gguf.paths[0].name, repr(value)[:60]
        return RequestError(f"{name} says {self.architecture}.{key} = {given}, which cannot be")

    def tensor(self, name: str) -> GgufTensor:
        """A tensor that there has to be."""
        if name not in self.gguf.tensors:
            raise RequestError(f"{self.gguf.paths[0].name} has no tensor {name}")
        return self.gguf.tensors[name]

    def has(self, stem: str) -> bool:
        """Whether some block has this tensor."""
        pattern = re.compile(rf"blk\.\d+\.{re.escape(stem)}")
        return any(pattern.fullmatch(name) for name in self.gguf.tensors)

    def floats(self, name: str) -> list[float]:
        """A small tensor of float32, in the fewest digits that stand for them."""
        tensor = self.tensor(name)
        if tensor.type_id != "F32" or len(tensor.shape) != 1:
            raise RequestError(f"{tensor.file.name} has a tensor {name} that is no list of float32")
        with tensor.file.open("rb") as file:
            file.seek(tensor.start)
            values = struct.unpack(f"<{tensor.shape[0]}f", file.read(tensor.end - tensor.start))
        if not all(math.isfinite(value) for value in values):
            raise RequestError(f"{tensor.file.name} has a tensor {name} that is not finite")
        return [shortest(value) for value in values]

    @property
    def head_dim(self) -> int:
        """Weights of a head."""
        width, heads = self.number("embedding_length"), self.number("attention.head_count")
        return self.number("attention.key_length", max(1, width // heads))

    @property
    def kv_heads(self) -> int:
        """Heads of keys, which several queries may share."""
        return self.number("attention.head_count_kv", self.number("attention.head_count"))

    @property
    def rotary_dim(self) -> int:
        """Weights of a head that are rotated."""
        size = self.number("rope.dimension_count", self.head_dim)
        if size % 2 or size > self.head_dim:
            raise self.wrong("rope.dimension_count", size)
        return size


def shortest(value: float) -> float:
    """A float32 in the fewest digits that stand for it."""
    for digits in (6, 7, 8):
        found = float(f"{value:.{digits}g}")
        if struct.pack("<f", found) == struct.pack("<f", value):
            return found
    return float(f"{value:.9g}")
