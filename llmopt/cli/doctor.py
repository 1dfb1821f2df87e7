"""llmopt doctor"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from llmopt.cli import options as o

#: what is shown of the kinds of work: the others are the many types and methods
_SHOWN = ("products", "hessians", "factors", "moved", "read", "written")
#: what a number of a unit a second is shown in
_IN = {"FLOP": "GFLOP/s", "bytes": "GB/s"}


def doctor(
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time this machine for forecasts: half a minute."),
    ] = False,
    threads: o.Threads = None,
    json: o.Json = False,
) -> None:
    """Show the machine, the libraries, and which optional backends are installed."""
    from rich.table import Table

    from llmopt import doctor
    from llmopt.cli.output import Output

    output = Output(json)
    if measure:
        output.note("measuring this machine: about half a minute ...")
        doctor.measure(threads)
    found = doctor.findings(threads)
    table = Table("what", "found", show_header=False, title="llmopt doctor")
    for name, value in found["machine"].items():
        table.add_row(name, str(value))
    table.add_row("speed", _speed(found["speeds"]))
    for name, backend in found["backends"].items():
        state = backend["version"] or f"not installed: {backend['install']}"
        table.add_row(name, f"{state}  ({backend['purpose']})")
    output.show(table)
    output.result(found)


def _speed(speeds: Mapping[str, Any] | None) -> str:
    """What is kept of the last measurement, or how to make one."""
    from llmopt.report.numbers import short
    from llmopt.specs import WORK
    from llmopt.specs.base import counted

    if speeds is None:
        return "not measured: llmopt doctor --measure"
    shown = [
        f"{WORK[kind].summary}: {short(rate / 1e9)} {_IN[WORK[kind].unit]}"
        for kind in _SHOWN
        if (rate := speeds["per_second"][kind])
    ]
    return "\n".join([f"{counted(speeds['threads'], 'thread')}, on {speeds['measured']}", *shown])
