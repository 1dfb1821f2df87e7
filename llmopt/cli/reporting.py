"""Bench results and manifests on disk, as tables and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmopt.artifact import file_of, read_manifest, read_object
from llmopt.cli.output import Output
from llmopt.cli.steps import run_record
from llmopt.errors import RequestError
from llmopt.report import Results, html, markdown, page, terminal

BENCH = "bench.json"


def bench_document(folder: Path) -> dict[str, Any]:
    """A bench step's results and, apart, the speeds of this run."""
    if not (folder / BENCH).is_file():
        raise RequestError(f"{folder} holds no bench results", hint="name a bench step's folder")
    return read_object(folder / BENCH) | {"speed": run_record(folder).get("speed", {})}


def collect(folders: list[Path]) -> Results:
    """One report's worth of results from bench folders and the artifacts they measured."""
    manifests: dict[str, dict[str, Any]] = {}
    entries: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest.get("verb") == "bench":
            document = bench_document(folder)
            if merged and document["corpus"] != merged["corpus"]:
                raise RequestError(
                    f"{folder} was measured on other text than the rest; one report has one text"
                )
            speed |= document.pop("speed")
            entries |= {entry["name"]: entry for entry in document["entries"]}
            merged = document
        elif manifest:
            resolved = folder.resolve()
            manifests[(file_of(resolved) or resolved).name] = manifest
    for entry in entries.values():  # the gate of the step that made it counts, too
        own = manifests.get(entry["name"], {}).get("gates", [])
        entry["gates"] = [*own, *(v for v in entry.get("gates", []) if v not in own)]
    if not merged:
        raise RequestError("none of these folders holds bench results")
    return Results.from_documents(merged | {"entries": list(entries.values())}, speed, manifests)


def show_bench(folders: list[Path], output: Output) -> None:
    """The table of a bench step; artifacts' folders add what their own gates found."""
    output.show(terminal.table(collect(folders)))


def write_report(folders: list[Path], path: Path) -> Path:
    """Write the page on these folders' results: Markdown where the file is .md, else HTML."""
    render = markdown.render if path.suffix == ".md" else html.render
    page.write(path, render(collect(folders)))
    return path
