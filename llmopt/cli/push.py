"""llmopt push"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmopt.cli import options as o

_Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A model that llmopt wrote.")]
_Repository = Annotated[
    str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub; NAME: your own.")
]
_Private = Annotated[bool, typer.Option("--private", help="Only for you to see.")]
_Branch = Annotated[
    str | None, typer.Option(metavar="BRANCH", help="Branch to push to. [default: main]")
]
_Message = Annotated[str | None, typer.Option(metavar="TEXT", help="Commit message.")]
_TokenEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable with the token. [default: HF_TOKEN, else hf's login]",
    ),
]
_FailedGateOk = Annotated[
    bool, typer.Option("--failed-gate-ok", help="Even if its quality gate failed.")
]


def push(
    artifact: _Artifact,
    repo_id: _Repository,
    private: _Private = False,
    revision: _Branch = None,
    message: _Message = None,
    token_env: _TokenEnv = None,
    failed_gate_ok: _FailedGateOk = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Upload a model to the Hugging Face hub, after checking that it is as it was written."""
    from llmopt import artifact as artifacts
    from llmopt import hub
    from llmopt.cli.output import Output, reporting
    from llmopt.report.numbers import megabytes

    output, artifact = Output(json, quiet), artifacts.at(artifact)
    with reporting(output) as reporter:
        reporter.phase(f"{artifact}: reading every byte")
        manifest = hub.checked(artifact, failed_gate_ok=failed_gate_ok)
    token = hub.find_token(token_env)
    to = hub.Destination(repo=repo_id, private=private, branch=revision, token=token)
    size = megabytes(sum(file["bytes"] for file in manifest["files"]))
    count = len(manifest["files"])
    output.note(f"{artifact}: as written; pushing {count} files, {size} MB, to {repo_id} ...")
    message = message or f"{manifest['name']}, {manifest['format']}, {manifest['digest']}"
    bars = not quiet and output.err.is_terminal
    done = hub.push(artifact, manifest, to, message=message, bars=bars)
    for warning in done.warnings:
        output.note(f"the hub says: {warning}")
    output.text(done.url)
    output.note(f"manifest {manifest[artifacts.MANIFEST_DIGEST]}: keep it, to verify against")
    output.result(
        {
            "url": done.url,
            "commit": done.commit,
            "files": list(done.files),
            "digest": manifest["digest"],
            artifacts.MANIFEST_DIGEST: manifest[artifacts.MANIFEST_DIGEST],
        }
    )
