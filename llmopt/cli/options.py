"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of unexpected errors.")]
Sets = Annotated[
    Optional[list[str]],  # noqa: UP045 - Typer evaluates this on 3.10 too
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, e.g. steps.w4.quantize.grid=int3.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, or cuda.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin weights (as plain tensors only).")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the YAML that does the same, and stop.")
]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Calibration text: a file, a dataset folder, or demo."),
]
Evaluation = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Held-out text to measure on. [default: demo]")
]
Field = Annotated[str | None, typer.Option(help="JSONL or dataset column of the text.")]
Windows = Annotated[int | None, typer.Option(help="Evaluation windows.")]
Length = Annotated[int | None, typer.Option(help="Tokens a window.")]
RunFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results.")]
