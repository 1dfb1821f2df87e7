"""llmopt doctor"""

from __future__ import annotations

from llmopt.cli import options as o


def doctor(json: o.Json = False) -> None:
    """Show the machine, the libraries, and which optional backends are installed."""
    from rich.table import Table

    from llmopt.cli.output import Output
    from llmopt.doctor import findings

    output = Output(json)
    found = findings()
    table = Table("what", "found", show_header=False, title="llmopt doctor")
    for name, value in found["machine"].items():
        table.add_row(name, str(value))
    for name, backend in found["backends"].items():
        state = backend["version"] or f"not installed: {backend['install']}"
        table.add_row(name, f"{state}  ({backend['purpose']})")
    output.show(table)
    output.result(found)
