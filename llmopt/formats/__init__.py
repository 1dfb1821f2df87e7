"""Containers: how models lie on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the tables name is held to its Protocol
    from llmopt.formats import checkpoint_kind
    from llmopt.formats.gguf import kind as gguf_kind
    from llmopt.formats.kind import FileKind, Kind

    _KINDS: tuple[Kind, FileKind] = (checkpoint_kind, gguf_kind)
