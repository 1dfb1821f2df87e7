"""Layers of a model and of its config: what kinds there are, and configs of fewer. No torch."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmopt.errors import RequestError

if TYPE_CHECKING:
    from torch import nn

#: keys that hold the number of layers
COUNT = (
    r"num_hidden_layers|n_layers?|num_layers|(num_)?decoder_layers|num_blocks|num_layers_per_stack"
    r"|num_global_layers|depth"
)
#: names of parts that see or hear
TOWERS = re.compile("vision|visual|audio|image|speech")
#: lists that have another length, unless by chance
_NO_LAYERS = r".*_(multipliers|limit|tokens|names)|axial_.*"
#: lists of layers' indices
_INDICES = r".*(layer|layers|layer_ids|idxs|indices|index(es)?|_ids)"


class BlockKind(NamedTuple):
    """What tells a block from others."""

    names: frozenset[str]  #: of its parameters
    settings: tuple[Hashable, ...]  #: what lists of the config say of it
    shared: bool  #: whether it has weights, or keys and values, of an earlier block


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of modules with weights, and its path; RequestError where there is none.

    No tower's, and none inside of another list.
    """
    from torch import nn

    found = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList)
        and not TOWERS.search(name)
        and not re.search(r"\.\d+\.", name)
        and all(any(True for _ in each.parameters()) for each in part)
    }
    if not found:
        raise RequestError("it has no list of blocks")

    def size(name: str) -> tuple[int, int]:
        return len(found[name]), sum(each.numel() for each in found[name].parameters())

    path = max(found, key=size)
    return path, found[path]


def lists_of(model: nn.Module) -> list[str]:
    """Keys of the model's settings that have a value for each of its blocks."""
    settings, full = _settings(model), len(blocks_of(model)[1])
    return [key for key, value in settings.items() if is_per_layer(key, value, full)]


def _settings(model: Any) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = model.config.get_text_config().to_dict()
    return settings


def kinds_of(model: nn.Module, lists: Sequence[str] | None = None) -> list[BlockKind]:
    """What kind each block is of; `lists` are the settings to look at, `lists_of` by default."""
    blocks, settings = blocks_of(model)[1], _settings(model)
    lists = lists_of(model) if lists is None else lists
    first_shared = len(blocks) - (settings.get("num_kv_shared_layers") or 0)
    seen: set[int] = set()
    kinds = []
    for index, block in enumerate(blocks):
        named = {re.sub(r"\b\d+\b", "*", name): id(each) for name, each in block.named_parameters()}
        said = tuple(settings[key][index] for key in lists)
        shared = index >= first_shared or not seen.isdisjoint(named.values())
        kinds.append(BlockKind(frozenset(named), said, shared))
        seen.update(named.values())
    return kinds


def choices(kinds: Sequence[Hashable]) -> Iterator[list[int]]:
    """Layers that may do: the first of each kind, then ever more of the first ones."""
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    yield firsts if len(firsts) > 1 else list(range(min(2, len(kinds))))
    for count in range(2, len(kinds)):
        yield list(range(count))


def with_layers(config: Mapping[str, Any], layers: Sequence[int], full: int) -> dict[str, Any]:
    """The config with these of its layers, `full` in number."""
    if isinstance(part := config.get("text_config"), Mapping):
        return {**config, "text_config": with_layers(part, layers, full)}
    fewer = dict(config)
    for key, value in config.items():
        if value == full and re.fullmatch(COUNT, key):
            fewer[key] = len(layers)
        elif is_per_layer(key, value, full):
            fewer[key] = [value[index] for index in layers]
        elif _is_indices(key, value, full):
            fewer[key] = [layers.index(index) for index in value if index in layers]
        elif key == "per_layer_config" and value:
            fewer[key] = {layers.index(int(i)): v for i, v in value.items() if int(i) in layers}
        elif key == "num_kv_shared_layers" and value:
            shared = sum(index >= full - value for index in layers)
            fewer[key] = shared or min(value, len(layers) // 2)
    return fewer


def is_per_layer(key: str, value: Any, full: int) -> bool:
    """Whether it is a list with an entry for each layer, rather than one of layers' indices."""
    if not isinstance(value, list) or len(value) != full or re.fullmatch(_NO_LAYERS, key):
        return False
    scalars = all(isinstance(each, str | int | float) for each in value)
    return scalars and value != list(range(full))


def _is_indices(key: str, value: Any, full: int) -> bool:
    if not isinstance(value, list) or not re.fullmatch(_INDICES, key):
        return False
    ordered = all(isinstance(v, int) for v in value) and value == sorted(set(value))
    return ordered and all(0 <= v < full for v in value)
