"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Optional

import typer

from llmopt.specs import CHECKPOINT, FORMATS, RUNTIMES


def one_of(names: Iterable[str], default: str) -> str:
    """Help of an option that takes one of a table's names."""
    return f"{', '.join(names)}. [default: {default}]"


WRITTEN = [id_ for id_, spec in FORMATS.items() if spec.grids and spec.kind == CHECKPOINT]

Model = Annotated[
    str, typer.Argument(help="A folder, a hub id, a .gguf file, an artifact, or demo.")
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")]
Bits = Annotated[int | None, typer.Option(help="--bits 4 is short for --grid int4.")]
Asymmetric = Annotated[bool, typer.Option("--asymmetric", help="A zero point per group.")]
TargetBpw = Annotated[
    float | None,
    typer.Option(help="Choose settings per linear: stored bits a weight, at most this."),
]
TargetSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="The same for the weight files as a whole, e.g. 5MB."),
]
Candidates = Annotated[
    list[str] | None,
    typer.Option(metavar="SETTING", help='What a target chooses among, e.g. "int4 g32" or Q4_K.'),
]
Damping = Annotated[float | None, typer.Option(help="gptq: share of the mean Hessian diagonal.")]
Refine = Annotated[int | None, typer.Option(help="gptq: sweeps after error feedback.")]
Gates = Annotated[
    list[str] | None,
    typer.Option(help='A quality gate, e.g. "kl.mean < 0.05"; none for no gate.'),
]
Sequences = Annotated[int | None, typer.Option(help="Calibration sequences. [default: 128]")]
SequenceLength = Annotated[int | None, typer.Option(help="Tokens a sequence. [default: 512]")]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
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
Runtime = Annotated[
    str,
    typer.Option(help=f"{' or '.join(RUNTIMES)}. auto: llama.cpp for GGUF, where it is installed."),
]
Threads = Annotated[
    int | None,
    # torch crashes on numbers that no machine has
    typer.Option(min=1, max=1024, help="Processor threads. [default: those it may use]"),
]
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
Field = Annotated[str | None, typer.Option(help="The column of the text. [default: text]")]
Windows = Annotated[int | None, typer.Option(help="Evaluation windows.")]
Length = Annotated[int | None, typer.Option(help="Tokens a window.")]
RunFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the results.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the finished artifact that -o names.")
]
