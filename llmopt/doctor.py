"""What this machine offers: processor features, memory, GPUs, optional backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from llmopt import __version__, threads
from llmopt.specs import OPTIONAL_PACKAGES

#: names in /proc/cpuinfo's flags -> what people call them
_CPU_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
}
#: distributions whose name is not the module's
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}


def findings() -> dict[str, dict[str, Any]]:
    """{"machine": {...}, "backends": {name: {"version", "install", "purpose"}}}."""
    return {"machine": _machine(), "backends": _backends()}


def _machine() -> dict[str, object]:
    import torch

    from llmopt.runtimes.torch.int8 import computes_in_integers

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "llmopt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cores": f"{os.cpu_count()}, of which {threads.usable()} may be used",
        "threads": torch.get_num_threads(),
        "cpu features": ", ".join(cpu_features()) or "unknown",
        "int8 linears": "integer products" if computes_in_integers() else "computed in float32",
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        "gpus": ", ".join(gpus) or "none",
    }


def cpu_features() -> list[str]:
    """The vector and matrix extensions of this processor that matter here."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return []
    text = info.read_text("utf-8", errors="replace")
    line = next((row for row in text.splitlines() if row.startswith(("flags", "Features"))), "")
    flags = set(line.partition(":")[2].split())
    return [name for flag, name in _CPU_FEATURES.items() if flag in flags]


def _backends() -> dict[str, dict[str, str | None]]:
    return {
        name: {
            "version": _version(name),
            "install": f'pip install "llmopt[{extra}]"',
            "purpose": purpose,
        }
        for name, (extra, purpose) in OPTIONAL_PACKAGES.items()
    }


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
