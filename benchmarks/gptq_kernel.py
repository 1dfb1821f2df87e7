"""Our GPTQ against a loop of AutoGPTQ's shape, on one square layer: times and losses.

    python benchmarks/gptq_kernel.py [--sizes 1024,2048,4096] [--bits 4] [--group-size 128]

The loop does what AutoGPTQ and its successors do: Cholesky, inverse, Cholesky; then blocks of 128
columns of a row-major weight, one column at a time, with minmax scales. Ours is timed at refine 0
(the same pass, with searched scales) and above. `wall` is the best of three, `cpu` that run's
seconds over all threads, which other load on the machine disturbs less. `loss` is
tr((W - Q) H (W - Q)^T) as a fraction of the loop's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from llmopt.grids import integer
from llmopt.grids.base import GridOptions
from llmopt.linalg import InputMoments, InputStatistics
from llmopt.methods.quantize import gptq
from llmopt.methods.quantize.settings import GptqSettings

BLOCK = 128


def problem(width: int) -> tuple[Tensor, InputStatistics]:
    """A square weight, and statistics of correlated inputs with a few loud channels."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(width // 4, width, generator=generator) / (width // 4) ** 0.5
    statistics = InputStatistics.empty(width, InputMoments(hessian=True))
    loud = 1 + 5 * (torch.rand(width, generator=generator) > 0.98)
    for _ in range(4):
        x = torch.randn(1024, width // 4, generator=generator) @ basis
        x += 0.5 * torch.randn(1024, width, generator=generator)
        statistics.add(x * loud)
    return torch.randn(width, width, generator=generator) / width**0.5, statistics


def autogptq_shaped(weight: Tensor, hessian: Tensor, bits: int, group_size: int) -> Tensor:
    """The decoded values, by the loop that AutoGPTQ made known."""
    w, h, top = weight.clone(), hessian.clone(), 2**bits - 1
    values = torch.zeros_like(w)
    h.diagonal().add_(0.01 * h.diagonal().mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, w.shape[1], BLOCK):
        stop = min(start + BLOCK, w.shape[1])
        block, errors = w[:, start:stop].clone(), torch.zeros_like(w[:, start:stop])
        inner = u[start:stop, start:stop]
        for i in range(stop - start):
            if (start + i) % group_size == 0:
                group = w[:, start + i : start + i + group_size]
                scale = group.abs().amax(1, keepdim=True) * (2 / top)
            column = block[:, i : i + 1]
            codes = torch.clamp(torch.round(column / scale) + (top + 1) // 2, 0, top)
            value = (scale * (codes - (top + 1) // 2)).flatten()
            values[:, start + i] = value
            error = (column.flatten() - value) / inner[i, i]
            block[:, i:] -= error.unsqueeze(1).matmul(inner[i, i:].unsqueeze(0))
            errors[:, i] = error
        w[:, stop:] -= errors.matmul(u[start:stop, stop:])
    return values


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """The result, and wall and CPU seconds of the fastest of three runs."""
    best = (float("inf"), 0.0)
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return result, *best


def ours(
    weight: Tensor, statistics: InputStatistics, options: GridOptions, refine: int
) -> Callable[[], Tensor]:
    def work() -> Tensor:
        solved = gptq.solve(weight, statistics, options, GptqSettings(refine=refine))
        return integer.decode(solved.codes, solved.params)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1024,2048,4096")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    args = parser.parse_args()
    bits, group_size = args.bits, args.group_size
    options = GridOptions(grid=f"int{bits}", bits=bits, group_size=group_size)
    print(f"{torch.get_num_threads()} threads, {bits} bits, groups of {group_size}")
    print(f"{'width':>6}  {'':14} {'wall s':>8} {'ratio':>6} {'cpu s':>8} {'ratio':>6} {'loss':>6}")
    for width in map(int, args.sizes.split(",")):
        weight, statistics = problem(width)
        hessian = statistics.hessian
        runs = {
            "autogptq-like": lambda w=weight, h=hessian: autogptq_shaped(w, h, bits, group_size)
        }
        for refine in (0, 1, 2):
            runs[f"refine {refine}"] = ours(weight, statistics, options, refine)
        first: tuple[float, float, float] | None = None
        for name, work in runs.items():
            values, wall, cpu = timed(work)
            change = weight - values
            loss = float(((change @ hessian) * change).sum())
            first = first or (wall, cpu, loss)
            print(
                f"{width:>6}  {name:14} {wall:8.2f} {first[0] / wall:6.2f}"
                f" {cpu:8.2f} {first[1] / cpu:6.2f} {loss / first[2]:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
