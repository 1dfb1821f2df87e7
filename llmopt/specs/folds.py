"""Where a scale of a linear's inputs can move to: the op before it.

Paths are those inside a block of the text model that transformers builds, see specs.families. A
`*` stands for an expert's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from llmopt.specs.families import Naming
from llmopt.specs.family import Fold


@dataclass(frozen=True)
class Pair:
    """A fold in one block, in the names of the checkpoint."""

    source: str
    readers: tuple[str, ...]
    linear: bool
    offset: float = 0.0


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
#: other OPT models normalise what comes out of a block, not what goes in
_BEFORE = ("do_layer_norm_before", True)
_FALCON = ("self_attention.query_key_value", "mlp.dense_h_to_4h")

#: where they depend on the config, which no run of one can show
_BY_HAND: dict[str, tuple[Fold, ...]] = {
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
    for fold in _folds(naming, block):
        key, value = fold.setting or ("", None)
        if config.get(key, value) != value or fold.absent in modules:
            continue
        for source in [path for path in modules if fnmatchcase(path, fold.source)]:
            number = _number(fold.source, source)
            wanted = [r.replace("*", number) if number else r for r in fold.readers]
            readers = [path for path in modules if any(fnmatchcase(path, r) for r in wanted)]
            if readers:
                names = tuple(modules[path] for path in readers)
                yield Pair(modules[source], names, fold.linear, fold.offset)


def _folds(naming: Naming, block: int) -> tuple[Fold, ...]:
    family = naming.family
    if family.id in _BY_HAND:
        return _BY_HAND[family.id]
    if not family.folds or block >= naming.block_count:  # the head
        return ()
    return family.folds[naming.kinds[block]]


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
