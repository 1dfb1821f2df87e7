"""Experts that a checkpoint stores in one tensor, as the tensors of each expert. No torch.

A slice along the first dimensions of a row-major tensor is a range of its bytes, so nothing is
read or copied: the headers of the parts say where they lie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from llmopt.errors import RequestError
from llmopt.formats.tensor_header import TensorHeader
from llmopt.specs.families import ExpertsSpec, FamilySpec
from llmopt.specs.naming import AHEAD_IN_BLOCK, layouts


def unfused(tensors: Mapping[str, TensorHeader], spec: ExpertsSpec) -> dict[str, TensorHeader]:
    """The same tensors with each expert's weights under names of their own, [out, in].

    RequestError where a checkpoint has an expert's weight in both ways.
    """
    found: dict[str, TensorHeader] = {}
    for name, header in tensors.items():
        for part in _parts(name, header, spec):
            if part.name in found or (part.name != name and part.name in tensors):
                raise RequestError(f"the weights hold {part.name} twice: alone and in {name}")
            found[part.name] = part
    return found


def unstacked(tensors: Mapping[str, TensorHeader], family: FamilySpec) -> dict[str, TensorHeader]:
    """The same tensors with a tensor for each expert, as it lies there, of those that hold several.

    That is only for families whose checkpoints hold the parameters of their model as they are, and
    for the blocks of the text model: what is beside them stays as it is.
    """
    found_in = (layout for layout in layouts(family) if layout.block_indices(tensors))
    naming = next(found_in, layouts(family)[0])
    ahead = naming.block_indices(name for name in tensors if AHEAD_IN_BLOCK.search(name))
    start = f"{family.base}.{family.blocks}.*."
    whole = {
        naming.name(start + stack.path).removeprefix(f"{naming.blocks}.*."): (
            naming.name(start + stack.linears[0]).removeprefix(f"{naming.blocks}.*.")
        )
        for stack in family.stacks
        if stack.whole
    }
    found: dict[str, TensorHeader] = {}
    for name, header in tensors.items():
        ends = (end for end in whole if name.endswith("." + end) and len(header.shape) == 3)
        end = next(ends, None)
        block = naming.block_of(naming.rename(name))
        if end is None or block is None or block in ahead:
            found[name] = header
            continue
        size = header.nbytes // header.shape[0]
        for expert in range(header.shape[0]):
            part = name.removesuffix(end) + whole[end].replace("*", str(expert)) + ".weight"
            start_ = header.start + expert * size
            found[part] = replace(
                header, name=part, shape=header.shape[1:], start=start_, end=start_ + size
            )
    return found


def _parts(name: str, header: TensorHeader, spec: ExpertsSpec) -> Iterator[TensorHeader]:
    """What one stored tensor holds, itself where it is not one of fused experts."""
    fused = f"{re.escape(spec.fused_gate_up)}|{re.escape(spec.fused_down)}"
    match = re.fullmatch(rf"(.+\.{re.escape(spec.path)})\.({fused})(?:\.weight)?", name)
    if match is None or len(header.shape) != 3:
        yield header
        return
    linears = [spec.gate, spec.up] if match[2] == spec.fused_gate_up else [spec.down]
    experts, rows, cols = header.shape
    if rows % len(linears):
        raise RequestError(f"tensor {name} of the shape {list(header.shape)} has an odd half")
    shape = (rows // len(linears), cols)
    size = header.nbytes // math.prod((experts, len(linears)))
    for index in range(experts * len(linears)):
        linear = linears[index % len(linears)]
        yield replace(
            header,
            name=f"{match[1]}.{index // len(linears)}.{linear}.weight",
            shape=shape,
            start=header.start + index * size,
            end=header.start + (index + 1) * size,
        )
