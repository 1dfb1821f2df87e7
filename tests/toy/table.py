"""The lines in the tables: what a toy file is, what runs it, and what model cards show."""

from __future__ import annotations

from llmopt.specs import KindSpec, LoaderSpec, RuntimeSpec
from llmopt.specs.loaders import Loads

KIND = KindSpec(  # in specs/kinds.py
    id="toy",
    title="a toy file",
    holds="model",
    module="tests.toy.kind",
    files={".toy": "model.toy"},
    weights=(".toy",),
    runtimes=("toy",),
)
RUNTIME = RuntimeSpec(  # in specs/runtimes.py
    id="toy",
    module="tests.toy.runtime",
    summary="toy files, in torch",
    chooses_dtype=True,
)
LOADER = LoaderSpec(  # in specs/loaders.py, with the line below
    id="play", title="play", language="shell", code="play PATH/model.toy\n"
)
LOADS = {"play": Loads(needs="")}
