"""Which type each tensor of a GGUF file gets: the mixes that llama-quantize offers.

The mixes are those of llama.cpp as llama-cpp-python 0.3.36 has it (`src/llama-quant.cpp`), which
`tests/specs/test_presets.py` compares with, tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import prod

from llmopt.errors import RequestError
from llmopt.specs.base import lookup
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.mix import (
    Mix,
    ModelFacts,
    Place,
    Preset,
    Role,
    When,
    always,
    blind,
    both,
    eight_experts,
    ends_and_thirds,
    first_eighth,
    first_four,
    first_sixteenth,
    first_two,
    guided,
    middle,
    only,
    shared,
    shared_or_experts,
)


def _low(id_: str, file_type: int, base: str, better: str, embedding: str, output: str) -> Preset:
    """A mix around two bits: `better` for values and the first blocks."""
    return Preset(
        id=id_, file_type=file_type, base=base, head="Q5_K", embedding=embedding, lowest=True,
        mix={
            "value": (("Q4_K", shared_or_experts), (better, always)),
            "down": ((better, first_eighth),),
            "key": (("Q4_K", eight_experts),),
            "output": (("Q5_K", eight_experts), (output, always)),
        },
    )  # fmt: skip


_LEGACY_DOWN = both(guided, first_eighth)  # ffn_down of the first blocks goes astray otherwise
_IQ4: Mix = {"value": (("Q5_K", shared),), "down": (("Q5_K", both(blind, first_eighth)),)}

_PRESETS = (
    Preset(id="F32", file_type=0, base="F32"),
    Preset(id="F16", file_type=1, base="F16"),
    Preset(id="BF16", file_type=32, base="BF16"),
    Preset(id="Q8_0", file_type=7, base="Q8_0", head="Q8_0"),
    Preset(id="Q4_0", file_type=2, base="Q4_0", mix={"down": (("Q4_1", _LEGACY_DOWN),)}),
    Preset(id="Q4_1", file_type=3, base="Q4_1"),
    Preset(id="Q5_0", file_type=8, base="Q5_0", mix={"down": (("Q5_1", _LEGACY_DOWN),)}),
    Preset(id="Q5_1", file_type=9, base="Q5_1"),
    Preset(
        id="Q2_K", file_type=10, base="Q2_K", expert_output=True,
        mix={
            "value": (("Q4_K", shared), ("Q3_K", always)),
            "down": only("Q3_K"),
            "output": only("Q3_K"),
        },
    ),
    Preset(
        id="Q2_K_S", file_type=21, base="Q2_K",
        mix={"value": (("Q4_K", shared),), "down": (("Q4_K", first_eighth),)},
    ),
    Preset(id="Q3_K_S", file_type=11, base="Q3_K", expert_output=True),
    Preset(
        id="Q3_K_M", file_type=12, base="Q3_K", expert_output=True,
        mix={
            "value": (("Q5_K", first_two), ("Q4_K", always)),
            "down": (("Q5_K", first_sixteenth), ("Q4_K", always)),
            "output": only("Q4_K"),
        },
    ),
    Preset(
        id="Q3_K_L", file_type=13, base="Q3_K",
        mix={"value": only("Q5_K"), "down": only("Q5_K"), "output": only("Q5_K")},
    ),
    Preset(
        id="Q4_K_S", file_type=14, base="Q4_K", expert_output=True,
        mix={"value": (("Q5_K", first_four),), "down": (("Q5_K", first_eighth),)},
    ),
    Preset(
        id="Q4_K_M", file_type=15, base="Q4_K", expert_output=True,
        mix={"value": (("Q6_K", ends_and_thirds),), "down": (("Q6_K", ends_and_thirds),)},
    ),
    Preset(id="Q5_K_S", file_type=16, base="Q5_K"),
    Preset(
        id="Q5_K_M", file_type=17, base="Q5_K",
        mix={"value": (("Q6_K", ends_and_thirds),), "down": (("Q6_K", ends_and_thirds),)},
    ),
    Preset(id="Q6_K", file_type=18, base="Q6_K"),
    Preset(id="IQ4_NL", file_type=25, base="IQ4_NL", mix=_IQ4, expert_output=True),
    Preset(id="IQ4_XS", file_type=30, base="IQ4_XS", mix=_IQ4, expert_output=True),
    Preset(
        id="IQ3_XXS", file_type=23, base="IQ3_XXS", head="Q5_K", embedding="IQ3_S",
        expert_output=True,
        mix={
            "value": (("Q4_K", shared), ("IQ3_S", blind)),
            "key": only("IQ2_S"),
            "query": only("IQ2_S"),
            "down": (("Q4_K", both(blind, first_eighth)), ("Q3_K", blind)),
            "output": only("IQ3_S"),
        },
    ),
    Preset(
        id="IQ3_XS", file_type=22, base="IQ3_S", expert_output=True,
        mix={
            "value": (("Q4_K", shared),),
            "key": only("IQ3_XXS"),
            "query": only("IQ3_XXS"),
            "gate": (("IQ3_XXS", middle),),
            "up": (("IQ3_XXS", middle),),
        },
    ),
    Preset(
        id="IQ3_S", file_type=26, base="IQ3_S", expert_output=True,
        mix={"value": (("Q4_K", shared),)},
    ),
    Preset(
        id="IQ3_M", file_type=27, base="IQ3_S", expert_output=True,
        mix={
            "value": only("Q4_K"),
            "down": (("Q4_K", first_eighth), ("Q4_K", both(eight_experts, ends_and_thirds))),
            "output": only("Q4_K"),
        },
    ),
    _low("IQ2_XXS", 19, "IQ2_XXS", better="Q2_K", embedding="Q2_K", output="IQ2_XXS"),
    _low("IQ2_XS", 20, "IQ2_XS", better="Q2_K", embedding="Q2_K", output="IQ2_XS"),
    _low("IQ2_S", 28, "IQ2_XS", better="IQ3_S", embedding="IQ3_S", output="IQ3_S"),
    _low("IQ2_M", 29, "IQ2_S", better="IQ3_S", embedding="IQ3_S", output="IQ3_S"),
    _low("IQ1_S", 24, "IQ1_S", better="Q2_K", embedding="Q2_K", output="IQ2_XXS"),
    _low("IQ1_M", 31, "IQ1_M", better="Q2_K", embedding="Q2_K", output="IQ2_XXS"),
    Preset(id="TQ1_0", file_type=36, base="TQ1_0", embedding="Q4_K"),
    Preset(id="TQ2_0", file_type=37, base="TQ2_0", embedding="Q4_K"),
    Preset(id="MXFP4_MOE", file_type=38, base="MXFP4", head="Q8_0"),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.id: preset for preset in _PRESETS}

#: `general.file_type` of types that no preset is called after (llama.h, llama_ftype)
_FILE_TYPES = {"MXFP4": 38, "NVFP4": 39}

#: other names that llama-quantize takes
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: Falcon's rules where they are not everyone's; its head is Q8_0
_FALCON: dict[tuple[str, Role], Sequence[tuple[str, When]]] = {
    ("Q3_K_M", "down"): (
        ("Q5_K", first_sixteenth), ("Q4_K", ends_and_thirds), ("Q3_K", always),
    ),
    ("Q3_K_L", "down"): only("Q4_K"),
    ("Q4_K_S", "down"): (),
    ("Q4_K_M", "down"): (
        ("Q6_K", first_sixteenth), ("Q5_K", ends_and_thirds), ("Q4_K", always),
    ),
    ("Q3_K_L", "output"): only("Q4_K"),
    **{(id_, "output"): () for id_ in ("Q2_K", "IQ3_XXS", "Q3_K_M", "IQ3_M")},
}  # fmt: skip

#: parts of names -> roles, the first that is found
_ROLES: tuple[tuple[str, Role], ...] = (
    ("attn_qkv.weight", "value"), ("attn_kv_b.weight", "value"), ("attn_v.weight", "value"),
    ("attn_k.weight", "key"), ("attn_q.weight", "query"), ("attn_output.weight", "output"),
    ("ffn_up", "up"), ("ffn_gate", "gate"), ("ffn_down", "down"),
)  # fmt: skip
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_HEAD = "output.weight"

#: parts of the names of matrices that stay floats: routers, position tables, small recurrences
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd",
)  # fmt: skip
_KEPT_TABLES = ("position_embd.weight", "token_types.weight")

#: what takes the place of a type whose blocks of 256 do not fill a row
_SMALLER_BLOCKS = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}

#: types that are of no use without an importance matrix, as upstream judges
_NEED_IMATRIX = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})


def find_preset(name: str) -> Preset:
    """The preset of a name in any case, aliases too; RequestError for an unknown one."""
    id_ = name.upper()
    return lookup(PRESETS, "GGUF preset", ALIASES.get(id_, id_))


def file_type_of(type_id: str) -> int:
    """`general.file_type` of a file whose tensors are mostly of one type."""
    return _FILE_TYPES[type_id] if type_id in _FILE_TYPES else find_preset(type_id).file_type


def preset_types(
    preset: Preset,
    tensors: Sequence[tuple[str, Sequence[int]]],
    model: ModelFacts,
    *,
    has_imatrix: bool,
    overrides: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The type of every tensor (its GGUF name, its shape rows first), as llama-quantize gives it.

    Tensors that it leaves alone are F32. `overrides` names types of single tensors; rows that
    their blocks do not fill have them replaced like others. Shapes and overrides of what stays
    float change nothing. Where no importance matrix is at hand, ask `needing_imatrix` next.
    """
    chooser = _Chooser(preset, [name for name, _ in tensors], model, has_imatrix)
    shapes, given = dict(tensors), overrides or {}
    types = dict.fromkeys(shapes, "F32")
    for name in sorted(shapes, key=_file_order):
        shape = shapes[name]
        if not is_quantized(name, shape):
            continue
        chosen = given[name] if name in given else chooser.choose(name, shape)
        types[name] = fitting(chosen, shape[-1])
    return types


def is_quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether a preset says anything of a tensor: matrices and experts, a few kinds apart."""
    if prod(shape[:-1]) == 1 or not name.endswith("weight"):
        return False
    return name not in _KEPT_TABLES and not any(part in name for part in _KEPT)


def fitting(type_id: str, columns: int) -> str:
    """The type, or what stands in for it where its blocks do not fill rows of `columns`."""
    for candidate in (type_id, _SMALLER_BLOCKS.get(type_id, type_id)):
        if columns % lookup(GGML_TYPES, "GGUF type", candidate).block == 0:
            return candidate
    return "F16"


def needing_imatrix(preset: Preset, types: Mapping[str, str]) -> list[str]:
    """The tensors among `types` that llama-quantize refuses to encode without their importance."""
    needy = _NEED_IMATRIX | ({"Q2_K"} if preset.id == "Q2_K_S" else set())
    return [n for n, t in types.items() if t in needy and n != _HEAD and n not in _EMBEDDINGS]


class _Chooser:
    """Walks tensors in the order of llama.cpp's files: some rules count what they have seen."""

    def __init__(
        self, preset: Preset, names: Sequence[str], model: ModelFacts, has_imatrix: bool
    ) -> None:
        self._preset, self._model, self._has_imatrix = preset, model, has_imatrix
        self._tied = _HEAD not in names
        self._values = sum(_role(name) == "value" for name in names)
        self._seen: dict[Role, int] = {}

    def choose(self, name: str, shape: Sequence[int]) -> str:
        """The type that the mix wants, whether or not its blocks fill the rows."""
        role, preset = _role(name), self._preset
        if preset.is_plain:
            return preset.base
        if role == "head" or (role == "embedding" and self._tied):
            whole = shape[-1] % GGML_TYPES[preset.base].block == 0
            return preset.head if whole and not self._is_falcon else "Q8_0"
        if preset.id == "MXFP4_MOE":
            return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
        if role == "embedding":
            return preset.embedding or preset.base
        return self._mixed(role, self._place(name, role))

    @property
    def _is_falcon(self) -> bool:
        return self._model.architecture == "falcon"

    def _place(self, name: str, role: Role) -> Place:
        index = self._seen.get(role, 0)
        self._seen[role] = index + 1
        count = self._values if role == "value" else self._model.layers
        if self._model.experts > 1 and role in ("up", "gate", "down") and not self._preset.lowest:
            index = _block(name)  # a block may have several such tensors
            if not 0 <= index < count:
                raise RequestError(f"{name} is in none of the model's {count} blocks")
        return Place(index=index, count=count, model=self._model, has_imatrix=self._has_imatrix)

    def _mixed(self, role: Role, place: Place) -> str:
        preset = self._preset
        rules = preset.mix.get(role, ())
        if self._is_falcon:
            rules = _FALCON.get((preset.id, role), rules)
        elif eight_experts(place) and role == "output" and not preset.lowest:
            return "Q5_K" if preset.expert_output else preset.base
        if eight_experts(place) and role in ("value", "key") and not preset.lowest:
            return "Q8_0"
        chosen = next((type_id for type_id, holds in rules if holds(place)), preset.base)
        if role == "value" and place.model.is_70b and not preset.lowest:
            return "Q5_K" if chosen in ("Q3_K", "Q4_K") else chosen
        return chosen


def _role(name: str) -> Role:
    if name == _HEAD:
        return "head"
    if name in _EMBEDDINGS:
        return "embedding"
    return next((role for part, role in _ROLES if part in name), "other")


def _block(name: str) -> int:
    """The number of the decoder block that a tensor is in; -1: none."""
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


def _file_order(name: str) -> tuple[int, bytes]:
    return _block(name), name.encode()
