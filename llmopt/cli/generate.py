"""llmopt generate"""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli import options as o


def generate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, an artifact, or demo.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="Text to continue; - reads stdin.")],
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=1)] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or auto. llama.cpp: auto.")
    ] = "auto",
    runtime: o.Runtime = "auto",
    device: o.Device = "auto",
    threads: o.Threads = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Continue a text, streaming tokens as they come."""
    import sys

    from llmopt.cli.output import Output
    from llmopt.generation import stream_text

    output = Output(json, quiet)
    text = sys.stdin.read() if prompt == "-" else prompt
    output.text_chunk(text)
    pieces = []
    for piece in stream_text(
        model,
        text,
        max_new_tokens,
        temperature=temperature,
        seed=seed,
        dtype=dtype,
        device=device,
        runtime=runtime,
        threads=threads,
    ):
        pieces.append(piece)
        output.text_chunk(piece)
    output.text_chunk("\n")
    output.result({"prompt": text, "completion": "".join(pieces)})
