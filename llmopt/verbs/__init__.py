"""Verbs: one folder each, and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the table names is held to its Protocol
    from llmopt.step import Plans, Runs
    from llmopt.verbs.allocate import plan as allocate_plan
    from llmopt.verbs.allocate import run as allocate_run
    from llmopt.verbs.allocate.settings import AllocateSettings
    from llmopt.verbs.bench import plan as bench_plan
    from llmopt.verbs.bench import run as bench_run
    from llmopt.verbs.bench.settings import BenchSettings
    from llmopt.verbs.convert import plan as convert_plan
    from llmopt.verbs.convert import run as convert_run
    from llmopt.verbs.convert.settings import ConvertSettings
    from llmopt.verbs.quantize import plan as quantize_plan
    from llmopt.verbs.quantize import run as quantize_run
    from llmopt.verbs.quantize.settings import QuantizeSettings

    _ALLOCATE: Plans[AllocateSettings] = allocate_plan
    _BENCH: Plans[BenchSettings] = bench_plan
    _CONVERT: Plans[ConvertSettings] = convert_plan
    _QUANTIZE: Plans[QuantizeSettings] = quantize_plan
    _RUNS: tuple[Runs, ...] = (allocate_run, bench_run, convert_run, quantize_run)
