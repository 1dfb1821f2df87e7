"""Decoder families as data: where a model's blocks and linears are, and which share an input.

Module paths are those of the text model that transformers builds for the family
(AutoModelForCausalLM); `Naming` maps them to the names in a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmopt.errors import RequestError
from llmopt.specs.base import suggestion

#: linears that share one input, as paths inside a block, in the order of computation
Inlets = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One decoder architecture.

    `base` is the prefix of all modules but the head; `blocks`, `embedding` and `final_norm` are
    below it. `conv1d`: linears are stored transposed, [in, out]. `norm_gain_offset`: a norm scales
    by this plus its weight. `attention` is the implementation that computes the family exactly.
    `text_config`: the key under which a multimodal config holds the text model's.
    `stored_as`: the names that checkpoints give to (base, head) where they differ from these.
    """

    id: str
    base: str
    blocks: str
    embedding: str
    final_norm: str
    inlets: Inlets
    head: str = "lm_head"
    conv1d: bool = False
    norm_gain_offset: float = 0.0
    attention: str = "sdpa"
    text_config: str | None = None
    stored_as: tuple[tuple[str, str], ...] = ()

    def language_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of config.json that describes the text model."""
        if self.text_config is None:
            return dict(config)
        part = config.get(self.text_config)
        if not isinstance(part, dict):
            raise RequestError(f"config.json of a {self.id} model has no {self.text_config}")
        return {"model_type": f"{self.id}_text", **part}

    def naming(self, stored: Iterable[str]) -> Naming:
        """How a checkpoint with these tensor names calls the family's modules."""
        names = set(stored)
        layouts = [layout for layout in self._layouts() if layout.block_indices(names)]
        if not layouts:
            raise RequestError(
                f"the weights have no tensor named {self.base}.{self.blocks}.0.*, "
                f"which a {self.id} model has"
            )
        with_head = (each for each in layouts if any(n.startswith(each.head + ".") for n in names))
        layout = next(with_head, layouts[0])
        blocks = layout.block_indices(names)
        if blocks != set(range(len(blocks))):
            lost = min(set(range(max(blocks))) - blocks)
            raise RequestError(f"the weights have no tensor of block {lost}")
        return replace(layout, block_count=len(blocks))

    def _layouts(self) -> list[Naming]:
        """The ways in which checkpoints of the family name their tensors, most usual first."""
        plain = [
            Naming(family=self, base=base, head=head)
            for base, head in self.stored_as or ((self.base, self.head),)
        ]
        if self.text_config is not None:
            return plain
        return plain + [replace(layout, base_missing=True) for layout in plain]


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names of one checkpoint.

    Checkpoints saved from a bare base model lack its prefix (gpt2's `h.0` for `transformer.h.0`);
    `rename` puts it back, because the tools that load quantized files expect it. All other
    methods give names as they are after that.
    """

    family: FamilySpec
    base: str
    head: str
    base_missing: bool = False
    block_count: int = 0

    def rename(self, stored: str) -> str:
        """The name in our files of a tensor of the checkpoint."""
        if self.base_missing and not stored.startswith(self.head + "."):
            return f"{self.base}.{stored}"
        return stored

    def name(self, module: str) -> str:
        """The name in our files of a module or tensor of the text model."""
        for ours, theirs in ((self.family.base, self.base), (self.family.head, self.head)):
            if module == ours or module.startswith(ours + "."):
                return theirs + module[len(ours) :]
        return module

    @property
    def blocks(self) -> str:
        """What the names of all tensors in blocks begin with; `.<index>.` follows."""
        return f"{self.base}.{self.family.blocks}"

    @property
    def embedding(self) -> str:
        """The token embedding's module."""
        return f"{self.base}.{self.family.embedding}"

    def linears(self, block: int) -> Inlets:
        """The names of a block's linears, those that share an input together, in order."""
        return tuple(
            tuple(f"{self.blocks}.{block}.{path}" for path in inlet) for inlet in self.family.inlets
        )

    def block_of(self, name: str) -> int | None:
        """The block that a tensor belongs to; None outside the blocks."""
        match = re.match(re.escape(self.blocks) + r"\.(\d+)\.", name)
        return int(match[1]) if match else None

    def block_indices(self, stored: Iterable[str]) -> set[int]:
        """The blocks that these tensors of the checkpoint belong to."""
        indices = (self.block_of(self.rename(name)) for name in stored)
        return {index for index in indices if index is not None}


_LLAMA = FamilySpec(
    id="llama",
    base="model",
    blocks="layers",
    embedding="embed_tokens",
    final_norm="norm",
    inlets=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ),
)
_GEMMA3_TEXT = replace(_LLAMA, id="gemma3_text", norm_gain_offset=1.0)

_FAMILIES = (
    _LLAMA,
    replace(_LLAMA, id="mistral"),
    replace(_LLAMA, id="qwen2"),
    replace(_LLAMA, id="qwen3"),
    # sdpa leaves out the soft cap on gemma2's attention scores
    replace(_LLAMA, id="gemma2", norm_gain_offset=1.0, attention="eager"),
    _GEMMA3_TEXT,
    replace(
        _GEMMA3_TEXT,
        id="gemma3",
        text_config="text_config",
        stored_as=(
            ("language_model.model", "language_model.lm_head"),
            ("model.language_model", "lm_head"),
        ),
    ),
    replace(
        _LLAMA,
        id="phi3",
        inlets=(
            ("self_attn.qkv_proj",),
            ("self_attn.o_proj",),
            ("mlp.gate_up_proj",),
            ("mlp.down_proj",),
        ),
    ),
    FamilySpec(
        id="gpt2",
        base="transformer",
        blocks="h",
        embedding="wte",
        final_norm="ln_f",
        inlets=(("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        conv1d=True,
    ),
    FamilySpec(
        id="gpt_neox",
        base="gpt_neox",
        blocks="layers",
        embedding="embed_in",
        final_norm="final_layer_norm",
        stored_as=(("gpt_neox", "embed_out"), ("gpt_neox", "lm_head")),
        inlets=(
            ("attention.query_key_value",),
            ("attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
    ),
    FamilySpec(
        id="opt",
        base="model.decoder",
        blocks="layers",
        embedding="embed_tokens",
        final_norm="final_layer_norm",
        inlets=(
            ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"),
            ("self_attn.out_proj",),
            ("fc1",),
            ("fc2",),
        ),
    ),
    FamilySpec(
        id="falcon",
        base="transformer",
        blocks="h",
        embedding="word_embeddings",
        final_norm="ln_f",
        inlets=(
            ("self_attention.query_key_value",),
            ("self_attention.dense",),
            ("mlp.dense_h_to_4h",),
            ("mlp.dense_4h_to_h",),
        ),
    ),
)
FAMILIES: dict[str, FamilySpec] = {family.id: family for family in _FAMILIES}


def family_of(config: Mapping[str, Any]) -> FamilySpec:
    """The family that a config.json belongs to, or RequestError with the nearest known one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise RequestError("config.json does not say its model_type")
    if model_type not in FAMILIES:
        raise RequestError(
            f"models of the type {model_type!r} are not supported",
            hint=suggestion(model_type, FAMILIES),
        )
    return FAMILIES[model_type]
