"""What this machine offers: processor features, memory, GPUs, optional backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from llmopt import __version__, forecast, threads
from llmopt.errors import LlmoptError
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
#: what measures, run as a program
_MODULE = "llmopt.forecast.measure"
#: what measuring may take: several times as long as it does on a slow machine that is busy
_SECONDS = 300
#: distributions whose name is not the module's
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}


def findings(count: int | None = None) -> dict[str, Any]:
    """{"machine": {...}, "backends": {name: {"version", "install", "purpose"}}, "speeds": {...}}.

    speeds: what `measure` found, for `count` threads or for as many as torch takes: "threads",
    "measured" (a date) and "per_second", by the kinds of specs.WORK; None where it was never done.
    """
    return {"machine": _machine(), "backends": _backends(), "speeds": _speeds(count)}


def measure(count: int | None = None, *, quick: bool = False) -> None:
    """Time each kind of work here, and remember it for plans; takes about half a minute.

    In a process of its own, so that what this one holds and does is not in it. LlmoptError where
    that fails, or takes too long. `quick`: as little as there can be, which says nothing.
    """
    machine = forecast.here(count)
    folder = forecast.place().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = _measured(folder, machine.threads, quick=quick)
    except OSError as error:
        raise LlmoptError(f"{error.filename or folder}: {error.strerror}") from error
    forecast.keep(machine, forecast.Speeds(said, datetime.now(UTC).date().isoformat()))


def _measured(folder: Path, count: int, *, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-P", "-m", _MODULE, str(folder)]
    with subprocess.Popen(
        [*command, "--quick"] if quick else command,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(count),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # and not the current folder
        },
    ) as process:  # fmt: skip
        try:
            out, complaints = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise LlmoptError(
                f"measuring did not end within {_SECONDS} seconds",
                hint="this machine may be busy with other work: try again when it is not",
            ) from error
        finally:
            process.kill()
    if process.returncode:
        last = (complaints.strip().splitlines() or ["it said nothing"])[-1]
        raise LlmoptError(f"measuring failed with exit code {process.returncode}: {last}")
    return {kind: float(value) for kind, value in json.loads(out).items()}


def _speeds(count: int | None) -> dict[str, object] | None:
    machine = forecast.here(count)
    found = forecast.speeds(machine)
    if found is None:
        return None
    per_second = {kind: 1 / s if s else None for kind, s in found.seconds.items()}
    return {"threads": machine.threads, "measured": found.measured, "per_second": per_second}


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
