"""What exists, as data: grids, methods, formats, artifact kinds, runtimes, verbs, families."""

from llmopt.specs.base import (
    CHECKPOINT,
    FormatSpec,
    GridSpec,
    KindSpec,
    LoaderSpec,
    MethodSpec,
    RuntimeSpec,
    VerbSpec,
    load,
    lookup,
    nearest,
    suggestion,
)
from llmopt.specs.formats import FORMATS
from llmopt.specs.grids import GRIDS
from llmopt.specs.kinds import KINDS
from llmopt.specs.loaders import LOADERS
from llmopt.specs.methods import METHODS
from llmopt.specs.metrics import METRICS
from llmopt.specs.runtimes import OPTIONAL_PACKAGES, RUNTIMES
from llmopt.specs.verbs import VERBS
from llmopt.specs.work import WORK

__all__ = [
    "CHECKPOINT",
    "FORMATS",
    "GRIDS",
    "KINDS",
    "LOADERS",
    "METHODS",
    "METRICS",
    "OPTIONAL_PACKAGES",
    "RUNTIMES",
    "VERBS",
    "WORK",
    "FormatSpec",
    "GridSpec",
    "KindSpec",
    "LoaderSpec",
    "MethodSpec",
    "RuntimeSpec",
    "VerbSpec",
    "load",
    "lookup",
    "nearest",
    "suggestion",
]
