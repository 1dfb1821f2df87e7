"""Bench results and manifests on disk, as tables and pages."""

from __future__ import annotations

from pathlib import Path

from llmopt.cli.output import Output
from llmopt.report import html, markdown, page, terminal
from llmopt.report.collect import bench_document, collect
from llmopt.report.recommendation import choose


def show_bench(folders: list[Path], output: Output) -> None:
    """The table of a bench step; artifacts' folders add what their own gates found."""
    for comparison in collect(folders):
        output.show(terminal.table(comparison, output.out.width))


def bench_result(bench: Path, folders: list[Path]) -> dict[str, object]:
    """A bench step's results for machines, with the verdict on them."""
    (comparison,) = collect([*folders, bench])
    return {**bench_document(bench), "verdict": choose(comparison).document()}


def write_report(folders: list[Path], path: Path) -> Path:
    """Write the page on these folders' results: Markdown where the file is .md, else HTML."""
    render = markdown.render if path.suffix == ".md" else html.render
    page.write(path, render(*collect(folders)))
    return path
