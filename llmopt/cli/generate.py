"""llmopt generate"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmopt.cli import options as o
from llmopt.cli.completion import offered

if TYPE_CHECKING:
    from llmopt.cli.output import Output
    from llmopt.generation import Request


_Prompt = Annotated[
    str, typer.Option("-p", "--prompt", metavar="TEXT", help="Text to continue; - reads stdin.")
]
_MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-new-tokens", min=1, help="[default: 128, or what the context has room for]"
    ),
]
_Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")]
_TopK = Annotated[
    int | None, typer.Option(min=1, help="Draw from this many of the most likely tokens.")
]
_TopP = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Draw from the most likely that sum to it.")
]
_MinP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Leave out what is less likely, next to the most likely."),
]
_Penalty = Annotated[float, typer.Option(min=0.01, help="Above 1: less of what has been.")]
_Beams = Annotated[
    int, typer.Option(min=1, help="torch: search this many continuations, keep the most likely.")
]
_Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")
]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")]
_DTYPES = ("auto", "float32", "bfloat16")
_Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="float32, bfloat16 or auto. llama.cpp: auto.",
        autocompletion=offered(lambda: _DTYPES),
    ),
]


def generate(
    model: o.Model,
    prompt: _Prompt,
    max_new_tokens: _MaxNewTokens = None,
    temperature: _Temperature = 0.0,
    top_k: _TopK = None,
    top_p: _TopP = None,
    min_p: _MinP = None,
    repetition_penalty: _Penalty = 1.0,
    beams: _Beams = 1,
    stop: _Stop = None,
    seed: _Seed = 0,
    dtype: _Dtype = "auto",
    runtime: o.Runtime = "auto",
    device: o.Device = "auto",
    threads: o.Threads = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Continue a text, streaming tokens as they come."""
    from llmopt.cli.output import Output
    from llmopt.generation import Request
    from llmopt.runtimes.base import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, beams, seed)
    text, stops = _typed(prompt), tuple(stop or ())
    request = Request(model, text, max_new_tokens, sampling, stops, runtime, device, dtype, threads)
    _stream(request, Output(json, quiet))


def _stream(request: Request, output: Output) -> None:
    """Print the prompt and what follows it."""
    from contextlib import ExitStack
    from itertools import chain

    from llmopt.cli.output import reporting
    from llmopt.generation import generation

    pieces = []
    with ExitStack() as stack:
        with reporting(output) as reporter:
            reporter.phase(f"{request.model}: loading")
            made = stack.enter_context(generation(request))
            stream = made.pieces()
            first = next(stream, "")  # a model that fails does so before anything is printed
        output.text_chunk(request.prompt)
        for piece in chain([first], stream):
            pieces.append(piece)
            output.text_chunk(piece)
    output.text_chunk("\n")
    if made.finish_reason == "context":
        output.note(f"the model's context of {made.context} tokens is full")
    output.result(
        {
            "prompt": request.prompt,
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
