"""What exists, as data: grids, methods, formats, runtimes, model families."""

from llmopt.specs.base import (
    FormatSpec,
    GridSpec,
    LoaderSpec,
    MethodSpec,
    RuntimeSpec,
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

__all__ = [
    "FORMATS",
    "GRIDS",
    "LOADERS",
    "METHODS",
    "METRICS",
    "OPTIONAL_PACKAGES",
    "RUNTIMES",
    "FormatSpec",
    "GridSpec",
    "LoaderSpec",
    "MethodSpec",
    "RuntimeSpec",
    "lookup",
    "nearest",
    "suggestion",
]
