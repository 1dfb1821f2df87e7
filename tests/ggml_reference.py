"""ggml's own encoder and decoder: libggml of llama-cpp-python, called in a process of its own.

`reference` and `references` are for tests: ggml aborts the process on what it does not like, so
the work is done in a subprocess, one for a whole list. `load`, `quantize` and `dequantize` are the
calls themselves, for that subprocess and for benchmarks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llmopt.specs.ggml import GGML_TYPES

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[1]


class Job(NamedTuple):
    """What to encode: w float32 [rows, cols], importance float32 [cols] or None."""

    type_id: str
    w: Tensor
    importance: Tensor | None = None


def references(jobs: Sequence[Job]) -> list[Tensor]:
    """The uint8 [rows, bytes] that ggml writes for each job."""
    return _answers("quantize", [(j.type_id, _array(j.w), _array(j.importance)) for j in jobs])


def reference(type_id: str, w: Tensor, importance: Tensor | None = None) -> Tensor:
    """As `references`, for one."""
    return references([Job(type_id, w, importance)])[0]


def decoded(jobs: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """The float32 [rows, cols] that ggml reads from each (type, uint8 [rows, bytes])."""
    return _answers("dequantize", [(type_id, data.numpy()) for type_id, data in jobs])


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous().numpy()


def _answers(call: str, jobs: list[tuple[Any, ...]]) -> list[Tensor]:
    import torch  # not in the subprocess, which is to start fast

    done = subprocess.run(
        [sys.executable, "-m", "tests.ggml_reference"],
        input=pickle.dumps((call, jobs)),
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    return [torch.from_numpy(array) for array in pickle.loads(done.stdout)]


class _Traits(ctypes.Structure):
    """The head of ggml_type_traits."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("nbytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


def load() -> ctypes.CDLL:
    """libggml's base library; llama_cpp itself is not imported."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec, "llama-cpp-python is not installed"
    assert spec.origin
    found = next(Path(spec.origin).parent.glob("lib/libggml-base.*"))
    library = ctypes.CDLL(str(found))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return library


def quantize(library: ctypes.CDLL, type_id: str, w: Any, importance: Any) -> Any:
    """uint8 [rows, bytes] for w [rows, cols], both numpy arrays."""
    spec = GGML_TYPES[type_id]
    rows, cols = w.shape
    out = np.zeros((rows, cols // spec.block * spec.nbytes), dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = library.ggml_quantize_chunk(
        spec.number, w.ctypes.data, out.ctypes.data, 0, rows, cols, weights
    )
    assert written == out.size
    return out


def dequantize(library: ctypes.CDLL, type_id: str, data: Any) -> Any:
    """float32 [rows, cols] from uint8 [rows, bytes]."""
    spec = GGML_TYPES[type_id]
    data = np.ascontiguousarray(data)
    out = np.zeros((data.shape[0], data.shape[1] // spec.nbytes * spec.block), dtype=np.float32)
    traits = library.ggml_get_type_traits(spec.number).contents
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def main() -> None:
    call, jobs = pickle.load(sys.stdin.buffer)
    library, work = load(), {"quantize": quantize, "dequantize": dequantize}[call]
    pickle.dump([work(library, *job) for job in jobs], sys.stdout.buffer)


if __name__ == "__main__":
    main()
