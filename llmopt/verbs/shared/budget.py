"""Budgets of steps that choose among settings: how much the linears may take. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from llmopt.model.change import Change
from llmopt.model.layout import Layout
from llmopt.recipe.fields import Settings
from llmopt.report.numbers import megabytes
from llmopt.specs import FORMATS
from llmopt.step import PlanContext, PlannedStep, StepInput

#: what is wrong with candidates where there is no budget
CANDIDATES_ALONE = "only a budget chooses among candidates"
#: bytes of a tensor's entry in a safetensors header beside its name, and tensors of a linear
_ENTRY, _PARTS, _FILE = 110, 5, 4096


def byte_budget(
    changes: Sequence[Change], target_bpw: float | None, target_size: int | None
) -> int:
    """Bytes for all linears that have options, together.

    target_bpw counts their weights; target_size the weight files as a whole, what is kept and the
    files' headers included.
    """
    quantized = [change for change in changes if change.options]
    if target_bpw is not None:
        return int(sum(math.prod(change.shape) for change in quantized) * target_bpw / 8)
    kept = sum(change.bytes + len(change.name) + _ENTRY for change in changes if not change.options)
    headers = sum(_PARTS * (len(change.name) + _ENTRY) for change in quantized) + _FILE
    return (target_size or 0) - kept - headers


def with_options(
    change: Change, options: tuple[Layout, ...], format_id: str, bits: float | None
) -> Change:
    """A linear's change, open among these. `bytes` is its share of a target in bits a weight."""
    rows, cols = change.shape
    sizes = [option.bytes((rows, cols), FORMATS[format_id]) for option in options]
    wanted = rows * cols * bits / 8 if bits else sizes[-1]
    size, why = min(max(wanted, min(sizes)), max(sizes)), f"{change.why}, by budget"
    return replace(change, options=options, bytes=round(size), why=why.removeprefix(", "))


def after_allocation(
    step: PlannedStep, asking: Settings, changes: tuple[Change, ...], context: PlanContext
) -> tuple[PlannedStep, ...]:
    """The step with these changes, after the allocation that chooses among their options."""
    asked = {"from": step.inputs[0].name, "asking": asking}
    before = context.step("allocate", asked, "allocation", changes=changes)
    inputs = (*step.inputs, StepInput("allocation", before[-1].id))
    return (*before, replace(step, changes=changes, inputs=inputs))


def goal(target_bpw: float | None, target_size: int | None) -> str:
    """A budget in words; "" for none."""
    if target_bpw is not None:
        return f"{target_bpw:g} bits per weight"
    return "" if target_size is None else f"{megabytes(target_size)} MB"
