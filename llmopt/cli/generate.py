"""llmopt generate"""

from __future__ import annotations

from typing import Annotated

import typer

from llmopt.cli import options as o


def generate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, an artifact, or demo.")],
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="Text to continue; - reads stdin.")],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "-n", "--max-new-tokens", min=1, help="[default: 128, or what the context has room for]"
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw from this many of the likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that sum to it.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Leave out what is less likely, next to the likeliest."
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, help="Above 1: less of what has been.")
    ] = 1.0,
    beams: Annotated[
        int, typer.Option(min=1, help="torch: search this many continuations, keep the likeliest.")
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
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
    from contextlib import ExitStack
    from itertools import chain

    from llmopt.cli.output import Output, reporting
    from llmopt.generation import Request, generation
    from llmopt.runtimes.base import Sampling

    output = Output(json, quiet)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, beams, seed)
    text = _typed(prompt)
    request = Request(
        model, text, max_new_tokens, sampling, tuple(stop or ()), runtime, device, dtype, threads
    )
    pieces = []
    with ExitStack() as stack:
        with reporting(output) as reporter:
            reporter.phase(f"{model}: loading")
            made = stack.enter_context(generation(request))
            stream = made.pieces()
            first = next(stream, "")  # a model that fails does so before anything is printed
        output.text_chunk(text)
        for piece in chain([first], stream):
            pieces.append(piece)
            output.text_chunk(piece)
    output.text_chunk("\n")
    if made.finish_reason == "context":
        output.note(f"the model's context of {made.context} tokens is full")
    output.result(
        {
            "prompt": text,
            "completion": "".join(pieces),
            "prompt_tokens": made.prompt_tokens,
            "tokens": made.tokens,
            "finish_reason": made.finish_reason,
            "stop": made.stop,
        }
    )


def _typed(prompt: str) -> str:
    """The prompt, or standard input in its place."""
    import sys

    from llmopt.errors import RequestError

    if prompt != "-":
        return prompt
    if sys.stdin is None:
        raise RequestError("standard input is closed", hint="--prompt TEXT")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise RequestError("the prompt on standard input is not UTF-8 text") from error
