"""How long this machine takes for each kind of work; runs in a process of its own.

    python -m llmopt.forecast.measure [--quick] FOLDER

Prints {kind: seconds a unit} for all of specs.WORK, measured with as many threads as torch takes
from the environment. FOLDER, which is there, is where the disk is measured. Each figure is the
best of a few runs: what else a machine does only ever adds to one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from llmopt.blockwalk import memory
from llmopt.grids import ggml
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.linalg.hessian import accumulate_hessian
from llmopt.methods.quantize import awq, blockwise, gptq, rtn
from llmopt.methods.quantize.settings import AwqSettings, Feedback, GptqSettings, RtnSettings
from llmopt.methods.transform.awq import Reader, search_scale
from llmopt.specs import load
from llmopt.specs.ggml import GGML_TYPES
from llmopt.specs.walking import MOST_ROWS
from llmopt.specs.work import columns, encoding, feedback, feedback_products

#: what a run loads besides, before it does anything
_LOADED_BY_RUNS = ("llmopt.verbs.quantize.run", "transformers.models.llama.modeling_llama")
_TOKENS, _WIDTH, _OUT = 1024, 1024, 4096
_DAMPING = Feedback().damping
_INT4 = GridOptions(
    grid="int4", bits=4, group_size=128, symmetric=True, scale_search="importance",
    signed_scales=True, min_zero=0,
)  # fmt: skip
#: scales that AWQ's search judges
_AWQ_SCALES = 41
#: threads that get rows of a weight that is solved
_MOST_THREADS = 4
#: seconds from which on a run is not repeated
_LONG, _LONG_PLAIN = 0.05, 1.0


class Measurements:
    """Seconds a unit by kind. `quick`: each once, and on a small file, for tests."""

    def __init__(self, *, quick: bool) -> None:
        self._runs = 1 if quick else 3
        self._widest = (2 if quick else 4) * _WIDTH
        self._threads = min(torch.get_num_threads(), _MOST_THREADS)
        self._disk_bytes = (1 if quick else 128) << 20
        self._generator = torch.Generator().manual_seed(0)
        self.found: dict[str, float] = {}

    def everything(self, folder: Path) -> dict[str, float]:
        """All kinds."""
        self._products()
        self._hessians()
        self._memory()
        self._disk(folder)
        self._methods()
        for type_id, spec in GGML_TYPES.items():
            if not spec.is_float:
                self._ggml(type_id)
        return self.found

    def _best(self, work: Callable[[], object], long: float = _LONG) -> float:
        """Of a few runs; what takes long is done once."""
        best = _seconds(work)
        for _ in range(self._runs - 1 if best < long else 0):
            best = min(best, _seconds(work))
        return best

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    def _products(self) -> None:
        x, weight = self._normal(_TOKENS, _WIDTH), self._normal(_OUT, _WIDTH)
        operations = 2 * _TOKENS * _WIDTH * _OUT
        self.found["products"] = self._best(lambda: linear(x, weight), _LONG_PLAIN) / operations
        heads, length = 8, 512
        query = self._normal(2, heads, length, 64)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        took = self._best(lambda: scaled_dot_product_attention(query, query, query, mask))
        self.found["attention"] = took / (4 * 2 * length * length * heads * 64)

    def _hessians(self) -> None:
        width = 2 * _WIDTH
        x, hessian = self._normal(_TOKENS, width), torch.zeros(width, width)
        took = self._best(lambda: accumulate_hessian(hessian, x, 0), _LONG_PLAIN)
        self.found["hessians"] = took / (_TOKENS * width * 1.25 * width)
        sizes = (_WIDTH, self._widest)
        known = [self._statistics(n) for n in sizes]
        dampings = count()  # another one each time: a factor is kept

        def factor(seen: InputStatistics) -> None:
            seen.factor(_DAMPING * (1 + next(dampings) / 1000))

        times = [self._best(partial(factor, seen), _LONG_PLAIN) for seen in known]
        self.found["factor elements"], self.found["factors"] = _two_terms(
            times, [n**2 for n in sizes], [n**3 / 3 for n in sizes]
        )

    def _memory(self) -> None:
        first, second = self._normal(1 << 22), self._normal(1 << 22)
        self.found["moved"] = self._best(lambda: first + second) / (3 * first.nbytes)
        weight, x = self._normal(8192, 2048), self._normal(1, 2048)
        self.found["decoding"] = self._best(lambda: linear(x, weight)) / weight.nbytes

    def _disk(self, folder: Path) -> None:
        data = os.urandom(self._disk_bytes)
        self.found["hashed"] = self._best(lambda: hashlib.sha256(data)) / len(data)
        with tempfile.NamedTemporaryFile(dir=folder) as file:

            def write() -> None:
                file.seek(0)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

            def read() -> None:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                file.seek(0)
                while file.read(1 << 22):
                    pass

            self.found["written"] = min(_elapsed(write) for _ in range(self._runs)) / len(data)
            self.found["read"] = min(_elapsed(read) for _ in range(self._runs)) / len(data)

    def _methods(self) -> None:
        cols, many, few = 512, MOST_ROWS * self._threads, 128
        statistics, weight = self._statistics(cols), self._normal(many, cols)
        factor = self._best(lambda: statistics.factor(_DAMPING))

        def taken(rows: int, refine: int) -> float:
            settings = GptqSettings(refine=refine)
            took = self._best(lambda: gptq.solve(weight[:rows], statistics, _INT4, settings))
            return took - factor - self._of_products(rows, cols, refine)

        first = [taken(few, 0), taken(many, 0)]
        refined = [taken(few, 2), taken(many, 2)]
        sweep = [(after - before) / 3 for after, before in zip(refined, first, strict=True)]
        for kind, times in (("feedback", first), ("feedback sweep", sweep)):
            self._by_column(kind, times, [few, many], cols)
        nearest = self._best(lambda: rtn.solve(weight, statistics, _INT4, RtnSettings()))
        self.found["nearest"] = nearest / weight.numel()
        clipped = self._best(lambda: awq.solve(weight, statistics, _INT4, AwqSettings()))
        self.found["clipping"] = clipped / weight.numel()
        reader = Reader(weight[:few], statistics, _INT4)
        products = _AWQ_SCALES * 2 * few * cols**2 * self.found["products"]
        scaled = max(self._best(lambda: search_scale([reader])) - products, 0)
        self.found["scale search"] = scaled / (_AWQ_SCALES * few * cols)

    def _ggml(self, type_id: str) -> None:
        cols, few = 256, 32
        statistics, rows = self._statistics(cols), self._normal(MOST_ROWS * self._threads, cols)
        weight = rows[:256]
        for search in ("best", "reference"):
            took = self._best(partial(ggml.encode, type_id, weight, statistics.diagonal, search))
            self.found[encoding(type_id, search)] = took / weight.numel()
        factor = self._best(lambda: statistics.factor(_DAMPING))

        def taken(count: int) -> float:
            part = rows[:count]
            took = self._best(lambda: blockwise.solve(part, statistics, type_id, Feedback()))
            return took - factor - self._of_products(count, cols, 2)

        taken(few)  # which makes what the type keeps
        short = taken(few)
        many = len(weight if short > 2 * _LONG else rows)
        self._by_column(feedback(type_id), [short, taken(many)], [few, many], cols)

    def _by_column(self, kind: str, times: list[float], rows: list[int], cols: int) -> None:
        """Split what a weight of few and one of many rows took into columns and weights."""
        self.found[columns(kind)], self.found[kind] = _two_terms(
            times, [cols, cols], [count * cols for count in rows]
        )

    def _of_products(self, rows: int, cols: int, refine: int) -> float:
        return rows * cols**2 * feedback_products(refine) * self.found["products"]

    def _statistics(self, cols: int) -> InputStatistics:
        statistics = InputStatistics.empty(cols, InputMoments(hessian=True, mean_abs=True))
        statistics.add(self._normal(2 * cols, cols))
        return statistics


def _seconds(work: Callable[[], object]) -> float:
    """How long work that only computes takes on a quiet machine.

    The time of all threads together is never less than that, but other programs add nothing to it.
    """
    began, computed = time.perf_counter(), time.process_time()
    work()
    return min(time.perf_counter() - began, time.process_time() - computed)


def _elapsed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _two_terms(times: list[float], first: list[float], second: list[float]) -> tuple[float, float]:
    """(a, b), neither below zero, with times = a first + b second at two points."""
    determinant = first[0] * second[1] - first[1] * second[0]
    a = (times[0] * second[1] - times[1] * second[0]) / determinant
    b = (first[0] * times[1] - first[1] * times[0]) / determinant
    if a < 0:
        return 0.0, times[1] / second[1]
    return (times[1] / first[1], 0.0) if b < 0 else (a, b)


def main() -> None:
    """What the module's documentation says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for module in _LOADED_BY_RUNS:
        load(module)
    started = time.process_time()  # what the process has computed since it began
    memory.steady()
    with torch.no_grad():
        found = Measurements(quick=arguments.quick).everything(arguments.folder)
    sys.stdout.write(json.dumps({"start": started, **found}) + "\n")


if __name__ == "__main__":
    main()
