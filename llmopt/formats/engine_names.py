"""How engines call the modules of a checkpoint, where configs name modules. No torch.

An engine looks a module up under its own name for it, which can differ from the checkpoint's: by
the base of a multimodal model, by what an architecture's modules were called when its checkpoints
were written, and where the engine makes one module of several linears that see the same input. A
config that leaves a module as it is, or gives it settings of its own, says so under every name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmopt.model.layout import Layout
from llmopt.specs.families import Naming


@dataclass(frozen=True)
class EngineNames:
    """The names for the modules of one checkpoint; without a naming, those that it has."""

    naming: Naming | None = None

    def all_of(self, modules: Iterable[str]) -> list[str]:
        """Every name of these modules, theirs first, and of what engines make of these alone."""
        found = list(dict.fromkeys(modules))
        if self.naming is None:
            return found
        alone = set(found)
        together = self.naming.fused({*found, *self._linears()})
        fused = [name for name, parts in together.items() if alone >= set(parts)]
        aliases = (self.naming.aliases(name) for name in [*found, *fused])
        return list(dict.fromkeys([*found, *fused, *(n for names in aliases for n in names)]))

    def patterns(self, modules: Iterable[str]) -> list[str]:
        """Regular expressions that match these names, from the start to the end, and no others."""
        names = self.all_of(modules)
        whole = set(names) & {holder for name in names for holder in _holders(name)}
        leaves: dict[str, list[str]] = {}
        for name in names:
            if whole.isdisjoint(_holders(name)):
                parent, _, leaf = name.rpartition(".")
                leaves.setdefault(name if name in whole else parent, []).append(leaf)
        return [_pattern(parent, found, parent in whole) for parent, found in leaves.items()]

    def _linears(self) -> Iterator[str]:
        """Those in the model's blocks; layers that look ahead are known by what is asked alone."""
        assert self.naming is not None
        for block in range(self.naming.block_count):
            for names in self.naming.linears(block):
                yield from names


OWN_NAMES = EngineNames()


def apart(
    naming: Naming, layers: Mapping[str, Layout], unquantized: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """What engines make one module of though its parts differ in settings: name -> parts."""
    settings: dict[str, Layout | None] = {**dict.fromkeys(unquantized), **layers}
    return {
        name: parts
        for name, parts in naming.fused(settings).items()
        if len({settings[part] for part in parts}) > 1
    }


def _holders(name: str) -> list[str]:
    """The modules that a module is in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _pattern(parent: str, leaves: list[str], whole: bool) -> str:
    if whole:
        return f"^{re.escape(parent)}(?:\\.|$)"
    names = "|".join(re.escape(leaf) for leaf in leaves)
    if len(leaves) > 1:
        names = f"(?:{names})"
    return f"^{re.escape(parent)}\\.{names}$" if parent else f"^{names}$"
