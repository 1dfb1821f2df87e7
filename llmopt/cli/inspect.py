"""llmopt inspect"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from llmopt.cli.flags import Value
    from llmopt.cli.output import Output
    from llmopt.step import RunOptions


_Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor.")]
_Sensitivity = Annotated[
    bool,
    typer.Option(
        "--sensitivity", help="What each setting of each linear costs; measured if need be."
    ),
]
_Candidates = Annotated[
    list[str] | None,
    typer.Option(metavar="SETTING", help='Settings to measure, e.g. "int4 g32".'),
]
_Calibration = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Calibration text: a file, a dataset folder, or demo."),
]
_Sequences = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="Calibration sequences. [default: 128]")
]


def inspect(
    model: o.Model,
    tensors: _Tensors = False,
    sensitivity: _Sensitivity = False,
    candidate: _Candidates = None,
    calibration: _Calibration = None,
    sequences: _Sequences = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Show what a model or artifact is: family, sizes, formats, where it came from."""
    from llmopt.cli.output import Output
    from llmopt.inspection import describe
    from llmopt.sources import resolve
    from llmopt.step import RunOptions

    output = Output(json, quiet)
    found = describe(resolve(model, fetch=False))
    output.show(_summary(found))
    if sensitivity:
        kept = found["manifest"].get("evidence", {}).get("allocation")
        options = RunOptions(device, threads)
        typed = {"--candidate": candidate, "--calibration": calibration, "--sequences": sequences}
        rows = kept["sensitivity"] if kept else _measured(model, typed, options, output)
        found["sensitivity"] = rows
        output.show(_sensitivity(rows))
    if tensors:
        output.show(_tensors(found["tensors"]))
    output.result(found)


def _measured(
    model: str, typed: Mapping[str, Value | None], options: RunOptions, output: Output
) -> list[dict[str, Any]]:
    """The table of a model that was not quantized to a budget, as if it were to be."""
    from pathlib import Path

    from llmopt import pipeline, planner
    from llmopt.cli import flags as f
    from llmopt.cli.one_step import named, recipe_of
    from llmopt.cli.output import reporting
    from llmopt.cli.verbs import checked
    from llmopt.errors import Mistakes

    mistakes, out = Mistakes(), Path("sensitivity")
    known = [*f.verb_flags("quantize"), *f.recipe_flags(f.CALIBRATION)]
    given = {flag: value for flag in known if (value := typed.get(flag.name)) is not None}
    asked = {"target_bpw": 16.0, "gate": []}
    data = recipe_of("quantize", model, given, out, mistakes, asked)
    plan = planner.plan(*checked(data, named(known, given), mistakes), out)
    with reporting(output) as reporter:
        return [dict(row) for row in pipeline.table(plan, "allocate", options, reporter)]


def _sensitivity(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    labels = list(dict.fromkeys(o["setting"] for row in rows for o in row["options"]))
    table = Table("linears", "weights", title="predicted KL, nats a token")
    for label in labels:
        table.add_column(label, justify="right")
    for row in rows:
        costs = {option["setting"]: option["kl"] for option in row["options"]}
        cells = [f"{costs[label]:.2g}" if label in costs else "" for label in labels]
        marked = [
            Text(cell, "bold" if label == row["chosen"] else "")
            for label, cell in zip(labels, cells, strict=True)
        ]
        table.add_row("\n".join(row["linears"]), f"{row['weights']:,}", *marked)
    return table


def _summary(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("what", "found", show_header=False, title=found["name"])
    for key, value in found["summary"].items():
        table.add_row(key, str(value))
    return table


def _tensors(tensors: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("tensor", "dtype", "shape", "bytes", "actions", "to", "error")
    for row in tensors:
        shape = "×".join(map(str, row["shape"])) if row["shape"] else ""
        error = "" if row.get("error") is None else f"{row['error']:.4g}"
        table.add_row(
            row["name"], row.get("dtype") or "", shape, str(row.get("bytes") or ""),
            ", ".join(row.get("actions", ())), row.get("to") or "", error,
        )  # fmt: skip
    return table
