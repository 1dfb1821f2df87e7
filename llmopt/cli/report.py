"""llmopt report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.errors import RequestError


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="A run's folder, or bench and artifact folders.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: .html or .md.")] = Path(
        "report.html"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that llmopt did not write.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write a report page from results that are there already."""
    from llmopt.artifact import MANIFEST, at
    from llmopt.cli.output import Output
    from llmopt.cli.reporting import write_report
    from llmopt.report import page

    if out.suffix not in (".html", ".md"):
        raise RequestError(f"{out}: a report is .html or .md")
    page.check(out, overwrite=overwrite, hint="--overwrite replaces it, or choose another -o")
    found = []
    for folder in map(at, folders):
        if not folder.is_dir():
            raise RequestError(f"there is no folder {folder}")
        inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
        found += [folder] if (folder / MANIFEST).is_file() else inside
    if not found:
        raise RequestError(f"no results in {', '.join(map(str, folders))}")
    write_report(found, out)
    output = Output(json, quiet)
    output.text(f"report: {out}")
    output.result({"report": str(out)})
