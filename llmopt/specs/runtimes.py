"""Engines that run artifacts."""

from __future__ import annotations

import importlib.util

from llmopt.errors import RequestError
from llmopt.specs.base import RuntimeSpec
from llmopt.specs.kinds import KINDS

#: a runtime's name that leaves the choice to the kind, and a device's and dtype's likewise
AUTO = "auto"

RUNTIMES: dict[str, RuntimeSpec] = {
    "torch": RuntimeSpec(
        id="torch",
        module="llmopt.runtimes.torch",
        summary="PyTorch on CPU or GPU: plain and quantized Hugging Face checkpoints; on the CPU "
        "int8 weights with int8 activations in integers",
        chooses_dtype=True,
        beams=True,
        by_blocks=True,
    ),
    "llama.cpp": RuntimeSpec(
        id="llama.cpp",
        module="llmopt.runtimes.llamacpp",
        summary="llama.cpp through llama-cpp-python: GGUF files, on the CPU or a GPU it is built "
        "for",
        extra="llamacpp",
        package="llama_cpp",
    ),
}

#: optional packages that something here imports, as `doctor` reports: module -> (extra, purpose)
OPTIONAL_PACKAGES: dict[str, tuple[str, str]] = {
    "llama_cpp": ("llamacpp", "run GGUF files"),
    "pyarrow": ("eval", "read Parquet files and dataset folders"),
}


def runtime_for(wanted: str, kind: str) -> str:
    """What runs an artifact of this kind; AUTO: the preferred one that is installed.

    RequestError where the one that is asked for does not run the kind.
    """
    offered = KINDS[kind].runtimes
    if wanted == AUTO:
        return next(runtime for runtime in offered if _installed(runtime))
    if wanted not in offered:
        raise RequestError(
            f"{wanted} does not run {KINDS[kind].title}", hint=f"--runtime {' or '.join(offered)}"
        )
    return wanted


def _installed(runtime: str) -> bool:
    package = RUNTIMES[runtime].package
    return package is None or importlib.util.find_spec(package) is not None
