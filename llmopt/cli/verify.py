"""llmopt verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.errors import LlmoptError, RequestError


def verify(
    artifact: Annotated[Path, typer.Argument(help="A folder or .gguf file that llmopt wrote.")],
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check every byte of an artifact against its manifest."""
    from llmopt import artifact as artifacts
    from llmopt.cli.output import Output

    artifact = artifacts.at(artifact)
    if not artifact.is_dir():
        there = "is not an artifact of llmopt's" if artifact.exists() else "does not exist"
        raise RequestError(f"{artifact} {there}")
    problems = artifacts.verify(artifact)
    output = Output(json, quiet)
    if problems:
        output.show(*problems)
        output.note(f"{artifact}: {len(problems)} problems")
        raise LlmoptError(f"{artifact} is not what its manifest says: {'; '.join(problems)}")
    manifest = artifacts.read_manifest(artifact)
    output.text(f"{artifact}: {len(manifest['files'])} files as written, {manifest['digest']}")
    output.result({"ok": True, "digest": manifest["digest"], "files": len(manifest["files"])})
