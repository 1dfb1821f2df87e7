"""What exists, as data: grids, methods, formats, runtimes, verbs, model families."""

from llmopt.specs.base import (
    FormatSpec,
    GridSpec,
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
from llmopt.specs.loaders import LOADERS
from llmopt.specs.methods import METHODS
from llmopt.specs.metrics import METRICS
from llmopt.specs.runtimes import OPTIONAL_PACKAGES, RUNTIMES
from llmopt.specs.verbs import VERBS

__all__ = [
    "FORMATS",
    "GRIDS",
    "LOADERS",
    "METHODS",
    "METRICS",
    "OPTIONAL_PACKAGES",
    "RUNTIMES",
    "VERBS",
    "FormatSpec",
    "GridSpec",
    "LoaderSpec",
    "MethodSpec",
    "RuntimeSpec",
    "VerbSpec",
    "load",
    "lookup",
    "nearest",
    "suggestion",
]
