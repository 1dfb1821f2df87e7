"""Which tensors of a checkpoint make up each tensor of a GGUF file, and the other way. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llmopt.errors import RequestError
from llmopt.formats.gguf.families import GgufFamily, check_supported, gguf_family
from llmopt.formats.gguf.order import RowOrder, row_order
from llmopt.formats.gguf.rope import factors
from llmopt.specs.families import Naming

#: what old checkpoints hold and every loader computes
_DERIVED = re.compile(r"\.(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")
#: matrices that llama.cpp wants in float32
_FLOAT32 = ("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd")


class HasShape(Protocol):
    """A tensor of the checkpoint, as far as names need it."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def layout(self) -> object | None: ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One tensor of a GGUF file.

    sources: the tensors of the checkpoint that it holds, by the names of our files: one, or the
    experts', one after another. shape: rows first, as in the file. order: row i of the file is row
    order[i] of each source. offset: is added to every weight. transposed: the checkpoint stores
    the source as [in, out]. float32: llama.cpp reads no other type here. values: what the tensor
    holds where it has no source.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    order: RowOrder | None = None
    offset: float = 0.0
    transposed: bool = False
    float32: bool = False
    values: tuple[float, ...] = ()


def placements(
    naming: Naming, config: Mapping[str, Any], tensors: Mapping[str, HasShape], *, tied: bool
) -> list[Placement]:
    """All tensors of the GGUF file of a checkpoint, in the order of the file.

    config: the whole config.json. tensors: the logical ones by the names of our files (as
    formats.quantization.Contents.tensors). tied: the head's weight is the embedding's. RequestError
    where llama.cpp cannot run the model, or has no place for one of its tensors.
    """
    family = naming.family
    spec = gguf_family(family.id)
    text = family.language_config(config)
    check_supported(family.id, text)
    if spec.head == "shared" and not tied:
        raise RequestError(
            f"llama.cpp cannot run this {family.id} model: its head is not its embedding"
        )
    builder = _Builder(naming, spec, text, tensors)
    found = [*builder.outside_first(), *builder.blocks(), *builder.outside_last(tied)]
    _check_complete(naming, text, tensors, found, tied)
    return found


class _Builder:
    def __init__(
        self,
        naming: Naming,
        spec: GgufFamily,
        text: Mapping[str, Any],
        tensors: Mapping[str, HasShape],
    ) -> None:
        self._naming, self._spec, self._text, self._tensors = naming, spec, text, tensors
        family = naming.family
        self._linears = family.linears

    def outside_first(self) -> Iterator[Placement]:
        """What llama.cpp's own files begin with: embeddings and the factors of rope."""
        for module, name in self._spec.outside.items():
            if name != "output_norm":
                yield from self._module(f"{self._naming.family.base}.{module}", name)
        for name, values in factors(self._text).items():
            yield Placement(name=name, shape=(len(values),), float32=True, values=values)

    def outside_last(self, tied: bool) -> Iterator[Placement]:
        """The final norm, and the head where it is not the embedding."""
        for module, name in self._spec.outside.items():
            if name == "output_norm":
                yield from self._module(f"{self._naming.family.base}.{module}", name)
        if not tied:
            yield from self._module(self._naming.family.head, "output")
        elif self._spec.head == "own":
            shape = self._tensors[f"{self._naming.embedding}.weight"].shape
            source = f"{self._naming.embedding}.weight"
            yield Placement(name="output.weight", shape=shape, sources=(source,))

    def blocks(self) -> Iterator[Placement]:
        family = self._naming.family
        for block in range(self._naming.block_count):
            for module, name in self._spec.modules.items():
                path = f"{family.base}.{family.blocks}.{block}.{module}"
                yield from self._module(path, f"blk.{block}.{name}", module)
            yield from self._experts(block)

    def _module(self, path: str, name: str, module: str = "") -> Iterator[Placement]:
        """A module's weight and bias, where the checkpoint has them."""
        family, spec = self._naming.family, self._spec
        norm = name.endswith(("_norm", "_norm_2"))
        suffixes = ("weight", "bias") if norm or module in spec.biases else ("weight",)
        for suffix in suffixes:
            source = self._naming.name(f"{path}.{suffix}")
            tensor = self._tensors.get(source)
            if tensor is None:
                continue
            shape = tensor.shape
            transposed = family.conv1d and module in self._linears and len(shape) == 2
            transposed &= tensor.layout is None
            if transposed:
                shape = shape[::-1]
            kind = spec.orders.get(module)
            yield Placement(
                name=f"{name}.{suffix}",
                shape=shape,
                sources=(source,),
                order=kind and row_order(kind, self._text, shape[0], key=module.endswith("k_proj")),
                offset=family.norm_gain_offset if norm else 0.0,
                transposed=transposed,
                float32=len(shape) == 1 or name.split(".")[-1] in _FLOAT32,
            )

    def _experts(self, block: int) -> Iterator[Placement]:
        naming, experts = self._naming, self._naming.family.experts
        if experts is None or not naming.experts[block]:
            return
        owner = f"{naming.family.base}.{naming.family.blocks}.{block}.{experts.owner}"
        for role, name in self._spec.experts.items():
            sources = tuple(
                naming.name(f"{owner}.{experts.path}.{index}.{getattr(experts, role)}.weight")
                for index in range(naming.experts[block])
            )
            missing = next((each for each in sources if each not in self._tensors), None)
            if missing is not None:
                raise RequestError(f"the weights have no tensor {missing}")
            shape = (len(sources), *self._tensors[sources[0]].shape)
            yield Placement(name=f"blk.{block}.{name}.weight", shape=shape, sources=sources)


def _check_complete(
    naming: Naming,
    text: Mapping[str, Any],
    tensors: Mapping[str, HasShape],
    found: list[Placement],
    tied: bool,
) -> None:
    """RequestError where a tensor of the text model would be lost."""
    placed = {source for placement in found for source in placement.sources}
    ours = (naming.base + ".", naming.head + ".")
    for name, tensor in tensors.items():
        if name in placed or not name.startswith(ours) or naming.is_mtp(name):
            continue
        if _DERIVED.search(name) or (tied and name == f"{naming.head}.weight"):
            continue
        if not math.prod(tensor.shape) or _is_filler(name, text, tensors):
            continue
        raise RequestError(
            f"llama.cpp has no place for tensor {name} of a {naming.family.id} model"
        )


def _is_filler(name: str, text: Mapping[str, Any], tensors: Mapping[str, HasShape]) -> bool:
    """Whether a bias is the zeros that AutoGPTQ gives every linear of models that have none."""
    module, _, suffix = name.rpartition(".")
    weight = tensors.get(f"{module}.weight")
    quantized = weight is not None and weight.layout is not None
    return suffix == "bias" and quantized and not (text.get("attention_bias") or text.get("bias"))
