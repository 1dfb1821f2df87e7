"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from llmopt.cli.completion import keys, offered, shipped
from llmopt.specs import RUNTIMES

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder, a hub id, a .gguf file, an artifact, or demo."),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, or a shipped recipe's name.",
        autocompletion=offered(shipped),
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write, or a file.")]
RunFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results.")]
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
        autocompletion=keys,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What no step may hold at once: 8GiB, 6GB, or bytes."),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, cpu, or cuda.",
        autocompletion=offered(lambda: ("auto", "cpu", "cuda")),
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"{' or '.join(RUNTIMES)}. auto: llama.cpp for GGUF, where it is installed.",
        autocompletion=offered(lambda: ("auto", *RUNTIMES)),
    ),
]
Threads = Annotated[
    int | None,
    # torch crashes on numbers that no machine has
    typer.Option(
        min=1, max=1024, metavar="NUMBER", help="Processor threads. [default: those it may use]"
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin weights (as plain tensors only).")
]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the YAML that does the same, and stop.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the finished artifact that -o names.")
]


def overrides(sets: list[str] | None, max_memory: str | None) -> list[str]:
    """The keys of a recipe that --set and the options beside it give."""
    return [*(sets or ()), *([f"max_memory={max_memory}"] if max_memory is not None else [])]
