"""What describes a decoder family: where blocks and linears are, and which share an input.

Module paths are those of the text model that transformers builds for the family
(AutoModelForCausalLM); `specs.naming` maps them to the names in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmopt.errors import RequestError

#: what a config says about the checkpoint, or about the kernels (of a repository on the hub, too)
#: that others have run it with, rather than about the model
NOT_THE_MODEL = frozenset(
    {
        "auto_map",
        "quantization_config",
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "experts_implementation",
        "use_kernels",
        "kernel_config",
    }
)
#: linears that share one input, as paths inside a block, in the order of computation; `*` stands
#: for an expert's number
Inlets = tuple[tuple[str, ...], ...]
#: inlets that do not depend on each other, after those that they depend on
Rounds = tuple[Inlets, ...]


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec:
    """Feed-forward networks of the usual form, down(act(gate(x)) * up(x)), of which a router picks.

    `owner` is the module of a block that holds them, and the rest are paths below it: `path` is
    where the experts are, `gate`, `up` and `down` are the linears of each.

    Checkpoints that hold all experts in one tensor call it `fused_gate_up` [experts, 2 * inner,
    width], an expert's gate above its up, and `fused_down` [experts, width, inner].
    """

    owner: str = "mlp"
    path: str = "experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused_gate_up: str = "gate_up_proj"
    fused_down: str = "down_proj"


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """A parameter that holds a matrix for each expert, where experts are not of the usual form.

    path: inside a block. linears: paths inside a block, what an expert's outputs are, one after the
    other, or row by row in turn where `interleaved`. transposed: a matrix is stored as [in, out].
    whole: checkpoints hold the parameter as it is; else they have the linears of each expert.
    """

    path: str
    linears: tuple[str, ...]
    transposed: bool = False
    interleaved: bool = False
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Fold:
    """An op whose outputs flow into matrices alone, through nothing that a scale would change.

    source: a norm, or a linear if `linear`. readers: everything that reads its output; those that
    are no linears of the walk (routers) are scaled, too. offset: what a norm adds to its weight.
    setting: (key, value) of a config for which alone it holds; value is what a config without the
    key means. absent: only where a block has no module of this name, for then the source has other
    readers. All are paths inside a block.
    """

    source: str
    readers: tuple[str, ...]
    linear: bool = False
    offset: float = 0.0
    setting: tuple[str, Any] | None = None
    absent: str | None = None


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """One decoder architecture.

    `base` is the prefix of all modules but the head; `blocks`, `embedding` and `final_norm` are
    below it. `kinds`: the linears of each kind of block, and `folds`
    where scales of their inputs can move to. `routers`: linears that stay as they are,
    because they send tokens to experts. `tables`: where tokens are looked up beside the embedding,
    below the base. `joined`: tensors inside a block whose rows checkpoints hold in several, one
    after the other. `conv1d`: linears are stored transposed, [in, out].
    `norm_gain_offset`: a norm scales by this plus its weight. `attention` is the implementation
    that computes the family exactly. `text_config`: the key under which a multimodal config holds
    the text model's, whose type is `text_type`.
    `stored_as`: the names that checkpoints give to (base, head) where they differ from these.
    `renamed`: modules, and what checkpoints call them; `*` stands for a number.
    """

    id: str
    base: str
    blocks: str
    embedding: str
    kinds: tuple[Rounds, ...]
    folds: tuple[tuple[Fold, ...], ...] = ()
    final_norm: str = "norm"
    head: str = "lm_head"
    routers: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()
    conv1d: bool = False
    norm_gain_offset: float = 0.0
    attention: str = "sdpa"
    text_config: str | None = None
    text_type: str | None = None
    stored_as: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    experts: ExpertsSpec | None = None
    stacks: tuple[StackSpec, ...] = ()

    @cached_property
    def linears(self) -> frozenset[str]:
        """All linears of any kind of block, as paths inside it."""
        return frozenset(
            path for kind in self.kinds for some in kind for inlet in some for path in inlet
        )

    def language_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The part of config.json that describes the text model."""
        if self.text_config is None:
            return dict(config)
        part = config.get(self.text_config)
        if not isinstance(part, dict):
            raise RequestError(f"config.json of a {self.id} model has no {self.text_config}")
        if (found := part.get("model_type", self.text_type)) != self.text_type:
            raise RequestError(f"{self.text_config} of a {self.id} model has the type {found!r}")
        return {**part, "model_type": self.text_type}
