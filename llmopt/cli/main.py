"""The `llmopt` command: Typer application, error handling and exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from llmopt import __version__, threads
from llmopt.cli import (
    bench,
    convert,
    doctor,
    generate,
    inspect,
    plan,
    push,
    quantize,
    recipes,
    report,
    run_,
    verify,
)
from llmopt.errors import LlmoptError

_INTERRUPTED, _TERMINATED, _BROKEN_PIPE = 130, 143, 141
_MOST_ERRORS = 20
_RESUMES = "{}; the same command resumes"

app = typer.Typer(
    name="llmopt",
    help="Make language models smaller, faster and cheaper, with proof that they are as good.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes half of the time in which --help must answer
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"llmopt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("quantize", short_help="Quantize weights, and check the result.")(quantize.quantize)
app.command("convert", short_help="Write the same weights in another layout.")(convert.convert)
app.command("bench", short_help="Measure quality, size, speed and memory.")(bench.bench)
app.command("run", short_help="Run a recipe; reuse and resume.")(run_.run)
app.command("plan", short_help="Say what a recipe would do.")(plan.plan)
app.command("inspect", short_help="Show what a model or artifact is.")(inspect.inspect)
app.command("verify", short_help="Check an artifact byte by byte.")(verify.verify)
app.command("push", short_help="Upload a model to the hub.")(push.push)
app.command("generate", short_help="Continue a text.")(generate.generate)
app.command("report", short_help="Write a report page from results.")(report.report)
app.add_typer(recipes.app, name="recipes", short_help="Shipped recipes, settings, JSON schema.")
app.command("doctor", short_help="Show machine, libraries and backends.")(doctor.doctor)


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like an interrupt so that locks and bars are let go."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    threads.settle()
    as_json = "--json" in sys.argv
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0
        if code == _INTERRUPTED:  # Typer turns an interrupt into this result
            _print_error(_RESUMES.format("interrupted"), None, code, as_json)
    except LlmoptError as error:
        _print_errors(error, as_json)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
        _print_error(_RESUMES.format("interrupted"), None, code, as_json)
    except _Terminated:
        code = _TERMINATED
        _print_error(_RESUMES.format("terminated"), None, code, as_json)
    except typer.Exit as stop:
        code = stop.exit_code
    except SystemExit:  # how Typer and rich leave when nobody reads on
        code = _BROKEN_PIPE
    except Exception as error:
        code = _usage_or_bug(error, as_json)
    sys.exit(_flushed(code))


def _flushed(code: int) -> int:
    """The exit code once what is left for stdout is written; another where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again as it exits
        if isinstance(error, BrokenPipeError):
            return _BROKEN_PIPE
        _write_error(f"standard output: {error.strerror}", None)
        return code or 1
    return code


def _open_closed_streams() -> None:
    """Give stdout and stderr that the shell closed (>&-) a place, before a file takes theirs."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _usage_or_bug(error: Exception, as_json: bool) -> int:
    show = getattr(error, "show", None)  # Typer's usage errors print themselves
    if show is not None:
        if as_json:
            message = getattr(error, "format_message", error.__str__)()
            _print_error(message or "no command; --help shows them", None, 2, as_json)
        else:
            show()
        return 2
    if isinstance(error, MemoryError):
        _print_error("out of memory", "llmopt plan shows what a step needs", 1, as_json)
        return 1
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        _print_error(f"{error.strerror}{where}", None, 1, as_json)
        return 1
    if "-v" in sys.argv or "--verbose" in sys.argv:
        traceback.print_exc()
    _print_error(
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug in llmopt; please report it with the output of the same command and -v",
        1,
        as_json,
    )
    return 1


def _print_errors(error: LlmoptError, as_json: bool) -> None:
    """An error, and the mistakes that were found with it."""
    for each in error.all[:_MOST_ERRORS]:
        _write_error(each.message, each.hint)
    if len(error.all) > _MOST_ERRORS:
        sys.stderr.write(f"and {len(error.all) - _MOST_ERRORS} more\n")
    if as_json:
        _write_document([_as_document(each) for each in error.all], error.exit_code)


def _print_error(message: str, hint: str | None, code: int, as_json: bool) -> None:
    _write_error(message, hint)
    if as_json:
        _write_document([{"message": message, "hint": hint}], code)


def _as_document(error: LlmoptError) -> dict[str, object]:
    place = {n: getattr(error, n, None) for n in ("file", "line", "column", "key")}
    place = {name: value for name, value in place.items() if value is not None}
    return {"message": error.message, "hint": error.hint} | place


def _write_error(message: str, hint: str | None) -> None:
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))


def _write_document(errors: list[dict[str, object]], code: int) -> None:
    """Errors as JSON, unless the result is on stdout already: that stays the one document."""
    output = sys.modules.get("llmopt.cli.output")
    if output is None or not output.documents:
        document = {"error": errors[0] | {"exit_code": code}, "errors": errors}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
