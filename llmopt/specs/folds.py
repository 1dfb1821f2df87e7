"""Where a scale of a linear's inputs can move to: the op before it. Data for each family.

Paths are those inside a block of the text model that transformers builds, see specs.families. A
`*` stands for an expert's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from llmopt.specs.families import Naming


@dataclass(frozen=True, kw_only=True)
class Fold:
    """An op whose outputs flow into linears alone, through nothing that a scale would change.

    source: a norm, or a linear if `linear`. readers: everything that reads its output; those that
    are no linears of the walk (routers) are scaled, too. setting: (key, value) of a config for
    which alone it holds; value is what a config without the key means. absent: only where a block
    has no module of this name, for then the source has other readers.
    """

    source: str
    readers: tuple[str, ...]
    linear: bool = False
    setting: tuple[str, Any] | None = None
    absent: str | None = None


@dataclass(frozen=True)
class Pair:
    """A fold in one block, in the names of the checkpoint."""

    source: str
    readers: tuple[str, ...]
    linear: bool


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_VALUES = Fold(source="self_attn.v_proj", readers=("self_attn.o_proj",), linear=True)
_DOWN = Fold(source="mlp.up_proj", readers=("mlp.down_proj",), linear=True)
_LLAMA = (
    Fold(source="input_layernorm", readers=_QKV),
    _VALUES,
    Fold(source="post_attention_layernorm", readers=_GATE_UP),
    _DOWN,
)
_GEMMA = (
    Fold(source="input_layernorm", readers=_QKV),
    _VALUES,
    Fold(source="pre_feedforward_layernorm", readers=_GATE_UP),
    _DOWN,
)
_MIXTURE = (
    Fold(source="input_layernorm", readers=_QKV),
    _VALUES,
    Fold(
        source="post_attention_layernorm",
        readers=(
            *_GATE_UP,
            "mlp.gate",
            "mlp.experts.*.gate_proj",
            "mlp.experts.*.up_proj",
            "mlp.shared_expert.gate_proj",
            "mlp.shared_expert.up_proj",
            "mlp.shared_expert_gate",
        ),
    ),
    _DOWN,
    Fold(source="mlp.experts.*.up_proj", readers=("mlp.experts.*.down_proj",), linear=True),
    Fold(source="mlp.shared_expert.up_proj", readers=("mlp.shared_expert.down_proj",), linear=True),
)
#: other OPT models normalise what comes out of a block, not what goes in
_BEFORE = ("do_layer_norm_before", True)
_FALCON = ("self_attention.query_key_value", "mlp.dense_h_to_4h")

FOLDS: dict[str, tuple[Fold, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _GEMMA),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _MIXTURE),
    "mixtral": (
        Fold(source="input_layernorm", readers=_QKV),
        _VALUES,
        Fold(
            source="post_attention_layernorm",
            readers=("mlp.gate", "mlp.experts.*.w1", "mlp.experts.*.w3"),
        ),
        Fold(source="mlp.experts.*.w3", readers=("mlp.experts.*.w2",), linear=True),
    ),
    "phi3": (
        Fold(source="input_layernorm", readers=("self_attn.qkv_proj",)),
        Fold(source="post_attention_layernorm", readers=("mlp.gate_up_proj",)),
    ),
    "gpt2": (
        Fold(source="ln_1", readers=("attn.c_attn",)),
        Fold(source="ln_2", readers=("mlp.c_fc",)),
    ),
    "gpt_neox": (
        Fold(source="input_layernorm", readers=("attention.query_key_value",)),
        Fold(source="post_attention_layernorm", readers=("mlp.dense_h_to_4h",)),
    ),
    "opt": (
        Fold(source="self_attn_layer_norm", readers=_QKV, setting=_BEFORE),
        Fold(source="self_attn.v_proj", readers=("self_attn.out_proj",), linear=True),
        Fold(source="final_layer_norm", readers=("fc1",), setting=_BEFORE),
        # a positive scale passes through this activation
        Fold(source="fc1", readers=("fc2",), linear=True, setting=("activation_function", "relu")),
    ),
    "falcon": (
        Fold(source="ln_attn", readers=_FALCON[:1]),
        Fold(source="ln_mlp", readers=_FALCON[1:]),
        Fold(source="input_layernorm", readers=_FALCON, absent="post_attention_layernorm"),
    ),
}


def pairs(
    naming: Naming, block: int, config: Mapping[str, Any], present: Mapping[str, Any]
) -> Iterator[Pair]:
    """The folds that a block of a checkpoint has; `present` are the names of its tensors."""
    modules = _modules(naming, block, present)
    for fold in FOLDS.get(naming.family.id, ()):
        key, value = fold.setting or ("", None)
        if config.get(key, value) != value or fold.absent in modules:
            continue
        for source in [path for path in modules if fnmatchcase(path, fold.source)]:
            number = _number(fold.source, source)
            wanted = [r.replace("*", number) if number else r for r in fold.readers]
            readers = [path for path in modules if any(fnmatchcase(path, r) for r in wanted)]
            if readers:
                names = tuple(modules[path] for path in readers)
                yield Pair(modules[source], names, fold.linear)


def _modules(naming: Naming, block: int, present: Mapping[str, Any]) -> dict[str, str]:
    """path in the block -> name in the checkpoint, of everything that has a weight."""
    start = f"{naming.family.base}.{naming.family.blocks}.{block}."
    found = {}
    for name in present:
        if naming.block_of(name) == block and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            found[naming.module(module).removeprefix(start)] = module
    return found


def _number(pattern: str, path: str) -> str:
    """What `*` stands for."""
    if "*" not in pattern:
        return ""
    before, after = pattern.split("*")
    return path.removeprefix(before).removesuffix(after)
