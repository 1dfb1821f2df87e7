"""llmopt inspect"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmopt.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, an artifact, or demo.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Show what a model or artifact is: family, sizes, formats, where it came from."""
    from llmopt.cli.output import Output
    from llmopt.inspection import describe
    from llmopt.sources import resolve

    output = Output(json, quiet)
    found = describe(resolve(model, fetch=False))
    output.show(_summary(found))
    if tensors:
        output.show(_tensors(found["tensors"]))
    output.result(found)


def _summary(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("what", "found", show_header=False, title=found["name"])
    for key, value in found["summary"].items():
        table.add_row(key, str(value))
    return table


def _tensors(tensors: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("tensor", "dtype", "shape", "bytes", "action", "to", "error")
    for row in tensors:
        shape = "×".join(map(str, row["shape"])) if row["shape"] else ""
        error = "" if row.get("error") is None else f"{row['error']:.4g}"
        table.add_row(
            row["name"], row.get("dtype") or "", shape, str(row.get("bytes") or ""),
            row.get("action") or "", row.get("to") or "", error,
        )  # fmt: skip
    return table
