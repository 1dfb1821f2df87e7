"""From a file, or the folder that it lies in, to an engine."""

from __future__ import annotations

from pathlib import Path

import torch

from llmopt.errors import RequestError
from llmopt.formats.gguf.container import first_file, read_gguf
from llmopt.runtimes.llamacpp.engine import LlamaCppEngine
from llmopt.runtimes.llamacpp.handles import LoadedModel
from llmopt.runtimes.llamacpp.native import native


def load(path: Path, *, device: str = "auto", threads: int | None = None) -> LlamaCppEngine:
    """The model of a .gguf file, or of a folder with one; of several parts, the first names all.

    device: "auto" is the GPU where llama.cpp was built for one. threads: as many as torch uses,
    where None. RequestError for a file that is damaged and a device that is not there,
    MissingDependency without llama-cpp-python.
    """
    file = path if path.is_file() else _file_in(path)
    read_gguf(file)  # what is damaged ends with a sentence; llama.cpp would end the process
    gpu = _on_gpu(device)
    return LlamaCppEngine(LoadedModel(file, gpu=gpu), threads=threads or torch.get_num_threads())


def _file_in(folder: Path) -> Path:
    found = first_file(folder)
    if found is None:
        raise RequestError(
            f"{folder.name} holds no GGUF model, which llama.cpp needs",
            hint="llmopt convert MODEL -o model.gguf --to gguf:Q4_K_M",
        )
    return found


def _on_gpu(device: str) -> bool:
    offers = bool(native().api.llama_supports_gpu_offload())
    if device == "auto":
        return offers
    if device != "cpu" and not offers:
        raise RequestError(
            "the installed llama-cpp-python was built without GPU support", hint="--device cpu"
        )
    return device != "cpu"
