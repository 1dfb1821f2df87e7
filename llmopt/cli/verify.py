"""llmopt verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli import options as o
from llmopt.errors import LlmoptError, RequestError

_Artifact = Annotated[
    Path,
    typer.Argument(metavar="ARTIFACT", help="A folder or .gguf file that llmopt wrote."),
]
_Digest = Annotated[
    str | None,
    typer.Option(metavar="SHA256", help="The manifest's digest as it was noted elsewhere."),
]


def verify(
    artifact: _Artifact,
    digest: _Digest = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check every byte of an artifact against its manifest, and the manifest and card too."""
    from llmopt import artifact as artifacts
    from llmopt.cli.output import Output, reporting
    from llmopt.report.manifest import gate_in_words
    from llmopt.specs.base import counted
    from llmopt.verification import verify as problems_of

    artifact = artifacts.at(artifact)
    if not artifact.is_dir():
        there = "is not an artifact of llmopt's" if artifact.exists() else "does not exist"
        raise RequestError(f"{artifact} {there}")
    output = Output(json, quiet)
    with reporting(output) as reporter:
        reporter.phase(f"{artifact}: reading every byte")
        problems = problems_of(artifact, kept=digest)
    if problems:
        output.show(*problems)
        raise LlmoptError(f"{artifact} is not what llmopt wrote: {'; '.join(problems)}")
    manifest = artifacts.read_manifest(artifact)
    files, seal = len(manifest["files"]), manifest[artifacts.MANIFEST_DIGEST]
    output.text(f"{artifact}: {counted(files, 'file')}, manifest and card as written")
    output.text(f"contents {manifest['digest']}")
    compared = "as given" if digest else "keep it elsewhere, and compare with --digest"
    output.text(f"manifest {seal} ({compared})")
    if gate := gate_in_words(manifest):
        output.text(gate)
    output.result(
        {
            "ok": True,
            "digest": manifest["digest"],
            artifacts.MANIFEST_DIGEST: seal,
            "compared": digest is not None,
            "files": files,
        }
    )
