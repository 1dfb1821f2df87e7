"""What a conversion to GGUF does with each tensor: its place in the file, and its type there."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmopt.errors import RequestError
from llmopt.formats.gguf.export import placements
from llmopt.formats.gguf.families import gguf_family
from llmopt.formats.gguf.names import Placement
from llmopt.model.change import Change
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.layout import Layout, ggml_layout
from llmopt.specs import nearest
from llmopt.specs.families import Naming
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.mix import ModelFacts
from llmopt.specs.presets import (
    file_type_of,
    find_preset,
    fitting,
    is_quantized,
    needing_imatrix,
    preset_types,
)
from llmopt.verbs.convert.layouts import Conversion
from llmopt.verbs.convert.settings import GgufTarget
from llmopt.verbs.shared.changes import DTYPES, kept_because, tied_head

#: what files call a head of its own
HEAD = "output.weight"
#: the preset of what a budget leaves alone
USUAL = "Q4_K_M"
#: types of plain numbers, and the dtypes all of whose values each holds
_HELD = {"F16": {"F16"}, "BF16": {"BF16"}, "F32": {"F16", "BF16", "F32"}}


@dataclass(frozen=True)
class Wanted:
    """A tensor of the file to be, and its type in specs.ggml. settled: by an override."""

    placement: Placement
    type_id: str
    settled: bool = False

    @property
    def has_blocks(self) -> bool:
        """Whether the type is more than a float."""
        return GGML_TYPES[self.type_id].block > 1


def wanted(contents: Contents, settings: GgufTarget, *, tied: bool, guided: bool) -> list[Wanted]:
    """The tensors of the file, in order. guided: whether importance of inputs is known.

    RequestError for a model that llama.cpp cannot run, a pattern that matches nothing, a type
    whose blocks do not fill a row, and types that are of no use without importance.
    """
    places = placements(contents, tied=tied)
    types = _types(contents, settings, places, guided=guided)
    settled = set()
    streamed = contents.naming.embedding if not tied or HEAD in types else None
    for index, override in enumerate(settings.overrides):
        for place in _matching(index, override.match, places):
            known = guided and place.sources != (f"{streamed}.weight",)
            tensors = [contents.tensors[name] for name in place.sources]
            known |= all(is_stored_as(tensor, override.type) for tensor in tensors)
            types[place.name] = _checked(override.type, place, known=known)
            settled.add(place.name)
    return [Wanted(place, types[place.name], place.name in settled) for place in places]


def file_type(settings: GgufTarget, found: Sequence[Wanted]) -> int:
    """`general.file_type`: the preset's number, else that of the type with the most weights."""
    if settings.preset is not None and not settings.has_budget:
        return find_preset(settings.preset).file_type
    weights = Counter[str]()
    for each in found:
        weights[each.type_id] += math.prod(each.placement.shape)
    return file_type_of(max(weights, key=lambda type_id: weights[type_id]))


def conversions(contents: Contents, found: Sequence[Wanted]) -> Iterator[Conversion]:
    """What becomes of every tensor of the checkpoint, in the order of the file."""
    placed = set()
    for each in found:
        names = names_of(contents.naming, each.placement)
        for name, source in zip(names, each.placement.sources, strict=True):
            placed.add(name)
            yield _conversion(contents, name, source, each)
    head = f"{contents.naming.head}.weight"
    if head not in placed:
        placed.add(head)
        yield Conversion(tied_head(contents), None)
    for name, tensor in contents.tensors.items():
        if name not in placed:
            why = kept_because(contents.naming, name)
            why = "llama.cpp has no place for it" if why == "not a linear" else why
            change = Change(name=name, actions=("dropped",), shape=tensor.shape, bytes=0, why=why)
            yield Conversion(change, None)


def _may_be_tied(contents: Contents, name: str) -> bool:
    """Whether values decide if a head of its own is the embedding, which then stands for both."""
    naming = contents.naming
    head = contents.tensors.get(f"{naming.head}.weight")
    if head is None or head.layout or not contents.config.get("tie_word_embeddings", True):
        return False
    return name in (head.name, f"{naming.embedding}.weight")


def names_of(naming: Naming, place: Placement) -> tuple[str, ...]:
    """What a tensor of the file holds, by the checkpoint's names; of a tied head, the head's."""
    return (f"{naming.head}.weight",) if place.name == HEAD else place.sources


def _types(
    contents: Contents, settings: GgufTarget, places: Sequence[Placement], *, guided: bool
) -> dict[str, str]:
    if settings.preset is None and not settings.has_budget:
        return {place.name: _own_type(contents, place, settings.dtype) for place in places}
    preset = find_preset(settings.preset or USUAL)
    shapes = [(place.name, place.shape) for place in places]
    types = preset_types(preset, shapes, _facts(contents), has_imatrix=guided)
    for place in places:
        if place.float32:
            types[place.name] = "F32"
    needy = needing_imatrix(preset, types)
    if needy and not guided:
        raise RequestError(
            f"preset {preset.id} is of no use without an importance matrix "
            f"({needy[0]} would be {types[needy[0]]})",
            hint="give calibration text (--calibration FILE), or --imatrix FILE",
        )
    return types


def _own_type(contents: Contents, place: Placement, dtype: str) -> str:
    """The type that holds a tensor as it is, or nearly so."""
    tensors = [contents.tensors[name] for name in place.sources]
    if place.float32 or not tensors or not is_quantized(place.name, place.shape):
        return "F32"
    asked = DTYPES.get(dtype)
    types = {
        _exact_type(t.layout) or asked or _decoded_type(contents)
        if t.layout
        else (t.dtype if t.in_blocks else asked or _plain_type(contents, t))
        for t in tensors
    }
    chosen = types.pop() if len(types) == 1 else asked or "F32"
    return fitting(chosen, place.shape[-1]) if GGML_TYPES[chosen].block > 1 else chosen


def is_stored_as(tensor: LogicalTensor, type_id: str) -> bool:
    """Whether a tensor of the source has this very type."""
    return type_id == (tensor.layout.grid if tensor.layout else tensor.dtype)


def _exact_type(layout: Layout) -> str | None:
    """The type that may hold the integers of a layout unchanged."""
    if layout.grid in GGML_TYPES:
        return layout.grid
    if not layout.grid.startswith("int") or layout.desc_act:
        return None
    if layout.group_size != -1 and layout.group_size % 32:
        return None
    if layout.bits > 4:
        return "Q8_0"
    return "Q4_0" if layout.symmetric else "Q4_1"


def _plain_type(contents: Contents, tensor: LogicalTensor) -> str:
    """The type that a plain tensor is stored in, or the widest."""
    if not tensor.dtype and tensor.nbytes == 2 * math.prod(tensor.shape):
        return _decoded_type(contents)  # a step is going to write it, as the model is
    return tensor.dtype if tensor.dtype in _HELD else "F32"


def _decoded_type(contents: Contents) -> str:
    """What the model's plain weights usually are, going by the embedding's."""
    embedding = contents.tensors[f"{contents.naming.embedding}.weight"]
    if embedding.dtype in _HELD:
        return embedding.dtype
    if embedding.nbytes == 4 * math.prod(embedding.shape):
        return "F32"
    config = contents.family.language_config(contents.config)
    named = config.get("dtype") or config.get("torch_dtype") or contents.config.get("dtype")
    return DTYPES.get(str(named), "F16") if named != "float32" else "F16"


def holds(type_id: str, tensor: LogicalTensor) -> bool:
    """Whether a type of plain numbers has all values that a tensor without a layout can have.

    One of which only the size is known yet is taken for one of that size.
    """
    if tensor.in_blocks:
        return type_id == "F32"
    if tensor.dtype:
        return tensor.dtype in _HELD[type_id]
    return tensor.nbytes <= GGML_TYPES[type_id].nbytes * math.prod(tensor.shape)


def _facts(contents: Contents) -> ModelFacts:
    naming, config = contents.naming, contents.family.language_config(contents.config)

    def count(*keys: str) -> int:
        return next((int(config[key]) for key in keys if config.get(key)), 0)

    heads = count("num_attention_heads", "n_head")
    return ModelFacts(
        architecture=gguf_family(contents.family.id).architecture,
        layers=naming.block_count,
        heads=heads,
        kv_heads=count("num_key_value_heads", "num_kv_heads") or heads,
        experts=max(naming.experts, default=0),
    )


def _matching(index: int, pattern: str, places: Sequence[Placement]) -> list[Placement]:
    found = [place for place in places if fnmatch.fnmatchcase(place.name, pattern)]
    if not found:
        names = [place.name for place in places]
        near = nearest(pattern, names) or names[0]
        raise RequestError(
            f"the pattern {pattern!r} of override {index + 1} matches no tensor of the file",
            hint=f"a tensor is called {near!r}",
        )
    return found


def _checked(type_id: str, place: Placement, *, known: bool) -> str:
    """The type that an override asks for, if the tensor can have it.

    known: whether the importance of its inputs is, or none is needed.
    """
    spec, name = GGML_TYPES[type_id], place.name
    if place.float32 and type_id != "F32":
        raise RequestError(f"llama.cpp reads {name} as F32 only", hint="narrow the pattern")
    if spec.importance == "required" and not known:
        raise RequestError(
            f"{type_id} needs the importance of inputs, which is not known of {name}",
            hint="give calibration text or an importance matrix, and narrow the pattern",
        )
    if place.shape[-1] % spec.block:
        raise RequestError(
            f"{type_id} has blocks of {spec.block}, which do not fill the {place.shape[-1]} "
            f"columns of {name}",
            hint=f"{fitting(type_id, place.shape[-1])} does",
        )
    return type_id


def _conversion(contents: Contents, name: str, source: str, each: Wanted) -> Conversion:
    """What becomes of a tensor of the checkpoint under a name that it has in the file."""
    tensor, place, spec = contents.tensors[source], each.placement, GGML_TYPES[each.type_id]
    shape = tensor.shape[::-1] if place.transposed else tensor.shape  # [outputs, inputs]
    decoded = not each.has_blocks and tensor.layout is not None
    if decoded and contents.naming.transposed(name.removesuffix(".weight")):
        stored = shape[::-1]
    else:
        stored = shape if each.has_blocks else tensor.shape
    change = Change(
        name=name,
        sources=(source,),
        actions=("quantized",) if each.has_blocks else ("decoded",) if decoded else ("kept",),
        shape=stored,
        bytes=math.prod(shape) // spec.block * spec.nbytes,
        layout=ggml_layout(each.type_id) if each.has_blocks else None,
        dtype="" if each.has_blocks else each.type_id,
        why=place.name if each.has_blocks else f"{place.name}, {each.type_id}",
        settled=(tensor.settled or each.settled) and not _may_be_tied(contents, name),
    )
    return Conversion(change, _loss(tensor, each))


def _loss(tensor: LogicalTensor, each: Wanted) -> str | None:
    """What the layouts alone say will be lost."""
    if tensor.layout is None:
        if tensor.dtype == each.type_id:
            return None
        if each.has_blocks:
            return "plain weights are rounded"
        # of BF16 in F16, and of F64 in F32, the stage reads the values
        mere_range = (tensor.dtype, each.type_id) == ("BF16", "F16")
        if each.type_id == "F32" or mere_range or holds(each.type_id, tensor):
            return None
        return f"{tensor.dtype or 'its'} values are rounded to {each.type_id}"
    if each.type_id == "F32" or _exact_type(tensor.layout) == each.type_id:
        return None
    return f"{tensor.layout.label} values are not {each.type_id} values"


def budgeted(found: Sequence[Wanted], chosen: Mapping[str, Layout]) -> list[Wanted]:
    """The tensors with what an allocation chose, experts by their first."""
    result = []
    for each in found:
        name = each.placement.sources[0].removesuffix(".weight") if each.placement.sources else ""
        setting = chosen.get(name)
        result.append(replace(each, type_id=setting.grid) if setting else each)
    return result
