"""From a file, or the folder that it lies in, to an engine."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import read_gguf
from llmopt.runtimes.llamacpp.engine import LlamaCppEngine
from llmopt.runtimes.llamacpp.handles import Weights
from llmopt.runtimes.llamacpp.library import library

_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


def load(path: Path, *, device: str = "auto", threads: int | None = None) -> LlamaCppEngine:
    """The model of a .gguf file, or of a folder with one; of several parts, the first names all.

    device: "auto" is the GPU where llama.cpp was built for one. threads: as many as torch uses,
    where None. RequestError for a file that is damaged and a device that is not there,
    MissingDependency without llama-cpp-python.
    """
    file = model_file(path)
    read_gguf(file)  # what is damaged ends with a sentence; llama.cpp would end the process
    gpu = _on_gpu(device)
    return LlamaCppEngine(Weights(file, gpu=gpu), threads=threads or torch.get_num_threads())


def model_file(path: Path) -> Path:
    """The file that holds a model, or its first part."""
    if path.is_file():
        return path
    found = sorted(
        file
        for file in path.glob("*.gguf")
        if not _LATER_PART.search(file.name) and not file.name.startswith("mmproj")
    )
    if not found:
        raise RequestError(
            f"{path.name} holds no .gguf file, which llama.cpp needs",
            hint="llmopt convert MODEL -o model.gguf --to gguf:Q4_K_M",
        )
    if len(found) > 1:
        raise RequestError(
            f"{path.name} holds {len(found)} GGUF models", hint=f"name one, e.g. {found[0]}"
        )
    return found[0]


def _on_gpu(device: str) -> bool:
    offers = bool(library().api.llama_supports_gpu_offload())
    if device == "auto":
        return offers
    if device != "cpu" and not offers:
        raise RequestError(
            "the installed llama-cpp-python was built without GPU support", hint="--device cpu"
        )
    return device != "cpu"
