"""Plans are run, and what came of their steps is said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmopt.artifact import file_of
from llmopt.cli.output import Output, found, reporting
from llmopt.errors import GateFailed
from llmopt.model import ledger as ledgers
from llmopt.model.results import CorpusName
from llmopt.report import card, numbers
from llmopt.report.collect import run_record
from llmopt.report.manifest import Manifest
from llmopt.report.quality import class_of
from llmopt.specs import VERBS
from llmopt.specs.base import counted

if TYPE_CHECKING:
    from llmopt.pipeline import Ran, StepResult
    from llmopt.planner import Plan
    from llmopt.step import RunOptions


def execute(plan: Plan, options: RunOptions, output: Output) -> Ran:
    """Run a plan, showing its progress."""
    from llmopt import pipeline

    with reporting(output) as reporter:
        return pipeline.run(plan, options, reporter)


def written(ran: Ran, yields: str) -> list[StepResult]:
    """The results of steps that yield a model, or results; gates of other steps are none."""
    return [
        result
        for result in ran.results
        if result.step.judges is None and VERBS[result.step.verb].yields == yields
    ]


def raise_if_failed(ran: Ran) -> None:
    """GateFailed, naming each gate that did not pass and each step that was refused for it."""
    failed = [
        f"{verdict.model}: {verdict.gate} (found {found(verdict)}{_amount(result)})"
        for result in ran.results
        for verdict in result.verdicts
        if not verdict.passed
    ]
    reasons = ["quality gate failed: " + "; ".join(failed)] if failed else []
    reasons += [f"{name} was not run: {why}" for name, why in ran.refused.items()]
    if reasons:
        raise GateFailed(". ".join(reasons))


def documents(ran: Ran) -> list[dict[str, object]]:
    """What came of each step as JSON; those that were refused are last."""
    done: list[dict[str, object]] = [
        {
            "step": result.step.id,
            "path": str(result.artifact.path),
            "reused": result.reused,
            "notes": list(result.notes),
            "manifest": result.artifact.manifest,
            "run": run_record(result.artifact.path),
        }
        for result in ran.results
    ]
    done += ({"step": name, "refused": why} for name, why in ran.refused.items())
    return done


def _amount(result: StepResult) -> str:
    """` on 16 windows of 512 tokens`: the text that a step's gates were held to."""
    manifest = result.artifact.manifest
    corpus = (manifest["gate"] if result.step.judges else manifest)["corpus"]
    return f" on {CorpusName.model_validate(corpus).amount}"


def summary_line(result: StepResult) -> str:
    """One line on what was written, what was left alone, and how good it is."""
    made = Manifest.model_validate(result.artifact.manifest)
    files = {file.path: file.bytes for file in made.files}
    size = numbers.megabytes(numbers.weight_bytes(files))
    path = file_of(result.artifact.path) or result.artifact.path
    parts = [f"{path}: {made.format}, {size} MB of weights"]
    if made.ledger:
        counts = ledgers.in_words(ledgers.count(entry.actions for entry in made.ledger))
        parts[0] += f"; tensors: {counts}"
    if moved := made.evidence.certificate:
        parts.append(f"{moved.exact} exact")
        if moved.rounded:
            largest = numbers.percent(moved.largest_error)
            parts[-1] += f", {moved.rounded} rounded (by up to {largest})"
    parts += _remarks(made)
    if cold := {entry.name.rsplit(".", 2)[0] for entry in made.ledger if entry.cold}:
        experts = counted(len(cold), "cold expert")
        parts.append(f"{experts} (few tokens) on the statistics of their block's")
    parts += _quality(made)
    return "; ".join(parts)


def _quality(made: Manifest) -> list[str]:
    """What the gate measured and on how much text, and what the allocation predicted."""
    said: list[str] = []
    entry, corpus = (made.gate.evidence, made.gate.corpus) if made.gate else (None, None)
    if entry and corpus and (kl := entry.metrics.get("kl.mean")) is not None:
        words = f"{class_of(entry)}: mean KL {numbers.interval(kl)} to {made.compared_with}"
        if (agreement := entry.value("agreement")) is not None:
            words += f", {numbers.percent(agreement)} same top token"
        said.append(f"{words}, on {corpus.amount}")
    if allocation := made.evidence.allocation:
        bits = numbers.short(allocation.bits_per_weight)
        predicted = numbers.short(allocation.predicted_kl)
        said.append(f"KL {predicted} predicted at {bits} bits per quantized weight")
    return said


def _remarks(made: Manifest) -> Iterator[str]:
    """What came out otherwise than one might think."""
    evidence, corpus = made.evidence, made.corpus
    if evidence.tokenizer:
        yield f"tokenizer: {'; '.join(evidence.tokenizer)}"
    if apart := card.apart(evidence.loading):
        yield f"vLLM and SGLang cannot load it: {apart}"
    if evidence.no_tokenizer:
        yield "no tokenizer came with the model: it cannot generate without one"
    if corpus and corpus.cut_from is not None:
        yield f"calibrated on {corpus.length} tokens a sequence, the model's context"
    if evidence.left_out:
        yield f"left out: {_some(evidence.left_out)}"


def _some(left_out: dict[str, str], most: int = 3) -> str:
    """The first few files of those that stay behind, each with its reason."""
    named = [f"{name} ({why})" for name, why in left_out.items()]
    more = [f"and {len(named) - most} more"] if len(named) > most else []
    return ", ".join([*named[:most], *more])
