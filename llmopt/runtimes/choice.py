"""Which runtime runs an artifact, and how it is started."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import first_file
from llmopt.formats.quantization import read_contents
from llmopt.runtimes.base import Engine
from llmopt.specs import FORMATS, RUNTIMES
from llmopt.specs.runtimes import AUTO


def format_of(folder: Path) -> str | None:
    """The format of the model in a folder; None for plain tensors, unless a GGUF file has them."""
    return "gguf" if first_file(folder) is not None else read_contents(folder).format


def runtime_for(wanted: str, format_id: str | None) -> str:
    """The runtime of a format, as `format_of` says it; `auto` is its own where installed.

    RequestError where the one that is asked for does not run the format.
    """
    offered = FORMATS[format_id].runtimes if format_id in FORMATS else ("torch",)
    if wanted == AUTO:
        return next(runtime for runtime in offered if _installed(runtime))
    if wanted not in offered:
        what = "a plain checkpoint" if format_id is None else f"format {format_id}"
        raise RequestError(
            f"{wanted} does not run {what}", hint=f"--runtime {' or '.join(offered)}"
        )
    return wanted


def open_engine(runtime: str, folder: Path, *, device: str, dtype: str = AUTO) -> Engine:
    """A model, loaded by a runtime. RequestError for a dtype where the file alone decides it."""
    spec = RUNTIMES[runtime]
    options = {"device": device}
    if spec.chooses_dtype:
        options["dtype"] = dtype
    elif dtype != AUTO:
        raise RequestError(
            f"{runtime} computes in the types that the file has", hint="leave out --dtype"
        )
    engine: Engine = importlib.import_module(spec.module).load(folder, **options)
    return engine


@contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Let engines that are opened and run inside compute with this many threads; None: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _installed(runtime: str) -> bool:
    package = RUNTIMES[runtime].package
    return package is None or importlib.util.find_spec(package) is not None
