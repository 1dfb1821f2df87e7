"""How a runtime is started."""

from __future__ import annotations

from pathlib import Path

from llmopt.artifact import check_trusted
from llmopt.errors import RequestError
from llmopt.formats.kind import kind_in
from llmopt.runtimes.base import Engine
from llmopt.specs import RUNTIMES, load
from llmopt.specs.runtimes import AUTO

_DTYPES = (AUTO, "float32", "bfloat16", "float16")


def open_engine(runtime: str, folder: Path, *, device: str, dtype: str = AUTO) -> Engine:
    """A model, loaded by a runtime: the one place where native code of a model's begins to run.

    RequestError for a dtype where the file alone decides it, and for code that is not trusted.
    """
    spec = RUNTIMES[runtime]
    if dtype not in _DTYPES:
        raise RequestError(f"unknown dtype {dtype!r}", hint=", ".join(_DTYPES))
    options = {"device": device}
    if spec.chooses_dtype:
        options["dtype"] = dtype
    elif dtype != AUTO:
        raise RequestError(
            f"{runtime} computes in the types that the file has", hint="leave out --dtype"
        )
    if kind_in(folder).native_code:
        check_trusted(folder)
    engine: Engine = load(spec.module).load(folder, **options)
    return engine
