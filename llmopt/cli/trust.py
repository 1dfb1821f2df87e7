"""llmopt trust"""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli import options as o


def trust(
    model: Annotated[str, typer.Argument(help="A folder or file that holds native code.")],
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Let native code that came with a model run, as long as not a byte of it changes."""
    from llmopt import artifact
    from llmopt.cli.output import Output, reporting
    from llmopt.errors import RequestError
    from llmopt.formats.kind import kind_in
    from llmopt.sources import resolve

    folder = resolve(model, fetch=False).folder
    kind = kind_in(folder)
    if not kind.native_code:
        raise RequestError(f"{model} is {kind.title}: it has no native code, and needs no trust")
    output = Output(json, quiet)
    with reporting(output) as reporter:
        reporter.phase(f"{model}: reading every byte")
        digest = artifact.contents_digest(folder)
    artifact.trust(digest)
    output.text(f"{model} is trusted: {digest}")
    output.result({"path": str(folder), "digest": digest})
