"""The tensors of a GGUF file under the names of a checkpoint. No torch, and nothing is copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import GgufFile, GgufTensor
from llmopt.formats.gguf.families import GgufFamily, gguf_family
from llmopt.formats.gguf.order import Rearrangement, row_order
from llmopt.formats.tensor_header import TensorHeader
from llmopt.specs.families import FamilySpec, Naming, family_of
from llmopt.specs.ggml import GGML_TYPES

#: the suffix of a linear's tensor that is left in blocks: uint8 [rows, bytes of a row]
BLOCKS = "ggml"
#: what follows from the config
_DERIVED = re.compile(r"(.*\.)?rope_(freqs|factors_long|factors_short)\.weight")


@dataclass(frozen=True)
class Restored:
    """A GGUF file as a checkpoint. types: the ggml type of each linear that is in blocks."""

    tensors: dict[str, TensorHeader]
    types: dict[str, str]


def restore(gguf: GgufFile, config: Mapping[str, Any]) -> Restored:
    """The tensors of the file for a model with this config.json.

    RequestError where the file holds another model, or a tensor that is not known.
    """
    family = family_of(config)
    spec = gguf_family(family.id)
    if gguf.architecture != spec.architecture:
        raise RequestError(
            f"{gguf.paths[0].name} holds a {gguf.architecture} model, but its config.json says "
            f"{family.id}"
        )
    return _Restorer(family, spec, family.language_config(config), gguf).restored()


def _kind_with(family: FamilySpec, experts: bool) -> int:
    """The kind of a family's blocks that have experts, or have none."""
    for index, kind in enumerate(family.kinds):
        if experts == any("*" in inlet[0] for some in kind for inlet in some):
            return index
    return 0


class _Restorer:
    def __init__(
        self, family: FamilySpec, spec: GgufFamily, text: Mapping[str, Any], gguf: GgufFile
    ) -> None:
        self._family, self._spec, self._text, self._gguf = family, spec, text, gguf
        base, head = family.stored_as[0] if family.stored_as else (family.base, family.head)
        experts = {tensor.shape[0] for tensor in gguf.tensors.values() if len(tensor.shape) == 3}
        if len(experts) > 1:
            raise RequestError(f"{gguf.paths[0].name} has blocks of {sorted(experts)} experts")
        blocks = gguf.block_count
        self._naming = Naming(
            family=family,
            base=base,
            head=head,
            block_count=blocks,
            kinds=(_kind_with(family, bool(experts)),) * blocks,
            experts=(experts.pop(),) * blocks if experts else (0,) * blocks,
        )
        self._linears = family.linears
        self._in_blocks = {
            linear
            for block in range(blocks)
            for inlet in self._naming.linears(block)
            for linear in inlet
        }
        self._modules = self._by_stem()

    def restored(self) -> Restored:
        tensors: dict[str, TensorHeader] = {}
        types: dict[str, str] = {}
        for tensor in self._gguf.tensors.values():
            for part in self._parts(tensor):
                module, _, suffix = part.name.rpartition(".")
                if suffix == BLOCKS:
                    types[module] = tensor.type_id
                tensors[part.name] = part
        return Restored(tensors, types)

    def _by_stem(self) -> dict[str, str]:
        """llama.cpp's name -> a block's module; falcon's first norm has a name for each layout."""
        found = {stem: module for module, stem in reversed(list(self._spec.modules.items()))}
        if "blk.0.attn_norm_2.weight" in self._gguf.tensors:
            found["attn_norm"] = "ln_mlp"
        return found

    def _parts(self, tensor: GgufTensor) -> Iterator[TensorHeader]:
        name, suffix = tensor.name.rpartition(".")[::2]
        if _DERIVED.fullmatch(tensor.name):
            return
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        if suffix not in ("weight", "bias"):
            raise self._unknown(tensor)
        if match is None:
            yield self._part(tensor, self._outside(tensor, name), suffix)
            return
        block, stem = int(match[1]), match[2]
        if block >= self._naming.block_count:
            raise self._unknown(tensor)
        path = f"{self._family.base}.{self._family.blocks}.{block}"
        role = next((role for role, name in self._spec.experts.items() if name == stem), None)
        if role is not None and len(tensor.shape) == 3 and self._family.experts is not None:
            experts = self._family.experts
            linear = getattr(experts, role)
            yield from self._slices(tensor, f"{path}.{experts.owner}.{experts.path}", linear)
        elif stem in self._modules:
            yield self._part(tensor, f"{path}.{self._modules[stem]}", suffix, self._modules[stem])
        else:
            raise self._unknown(tensor)

    def _outside(self, tensor: GgufTensor, stem: str) -> str:
        """The text model's module beside the blocks."""
        if stem == "output":
            return self._family.head
        for module, name in self._spec.outside.items():
            if name == stem:
                return f"{self._family.base}.{module}"
        raise self._unknown(tensor)

    def _unknown(self, tensor: GgufTensor) -> RequestError:
        return RequestError(
            f"{tensor.file.name} holds tensor {tensor.name}, which is not known of "
            f"{self._gguf.architecture} models"
        )

    def _slices(self, tensor: GgufTensor, experts: str, linear: str) -> Iterator[TensorHeader]:
        count, rows, cols = tensor.shape
        size = (tensor.end - tensor.start) // count
        for index in range(count):
            start = tensor.start + index * size
            name = self._naming.name(f"{experts}.{index}.{linear}")
            yield self._stored(tensor, name, "weight", (rows, cols), start, start + size, None)

    def _part(self, tensor: GgufTensor, path: str, suffix: str, module: str = "") -> TensorHeader:
        kind = self._spec.orders.get(module)
        shape = tensor.shape
        order = kind and row_order(kind, self._text, shape[0], key=module.endswith("k_proj"))
        norm = tensor.name.removesuffix(f".{suffix}").endswith(("_norm", "_norm_2"))
        offset = self._family.norm_gain_offset if norm and suffix == "weight" else 0.0
        transposed = self._family.conv1d and module in self._linears and suffix == "weight"
        arranged = Rearrangement(order=order, offset=offset, transposed=transposed)
        name = self._naming.name(path)
        if suffix == "weight" and name in self._in_blocks and len(shape) != 2:
            raise RequestError(
                f"{tensor.file.name} gives tensor {tensor.name} the shape {list(shape)}, "
                "but it should be a matrix"
            )
        return self._stored(
            tensor, name, suffix, shape, tensor.start, tensor.end,
            None if arranged == Rearrangement() else arranged,
        )  # fmt: skip

    def _stored(
        self, tensor: GgufTensor, module: str, suffix: str, shape: tuple[int, ...],
        start: int, end: int, arranged: Rearrangement | None,
    ) -> TensorHeader:  # fmt: skip
        dtype, spec = tensor.type_id, GGML_TYPES[tensor.type_id]
        if spec.block > 1 and suffix == "weight" and module in self._in_blocks:
            suffix, dtype = BLOCKS, "U8"
            shape = (shape[0], shape[1] // spec.block * spec.nbytes)
            # rows stay rows: a linear in blocks is [out, in] whatever the family stores
            if arranged is not None and arranged.transposed:
                arranged = None
        elif arranged is not None and arranged.transposed:
            shape = shape[::-1]
        return TensorHeader(
            name=f"{module}.{suffix}", dtype=dtype, shape=shape, file=tensor.file,
            start=start, end=end, arranged=arranged,
        )  # fmt: skip
