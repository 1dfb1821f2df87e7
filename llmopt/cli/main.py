"""The `llmopt` command: error handling and exit codes."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from llmopt import threads
from llmopt.cli.commands import application
from llmopt.errors import LlmoptError

_INTERRUPTED, _TERMINATED, _BROKEN_PIPE = 130, 143, 141
_MOST_ERRORS = 20
#: objects made since the last search for cycles among them: the default, 700, is a tenth of the
#: time in which the libraries are loaded
_COLLECT_EVERY = 50_000
_STOPPED = {_INTERRUPTED: "interrupted", _TERMINATED: "terminated"}


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds like an interrupt so that locks and bars are let go."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def run() -> NoReturn:
    """Run the command line and exit with its code."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    threads.settle()
    gc.set_threshold(_COLLECT_EVERY)
    as_json = "--json" in sys.argv
    try:
        result = application()(standalone_mode=False)
        code = result if isinstance(result, int) else 0  # Typer turns an interrupt into 130
    except LlmoptError as error:
        _print_errors(error, as_json)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except _Terminated:
        code = _TERMINATED
    except typer.Exit as stop:
        code = stop.exit_code
    except SystemExit:  # how Typer and rich leave when nobody reads on
        code = _BROKEN_PIPE
    except Exception as error:
        code = _usage_or_bug(error, as_json)
    if code in _STOPPED:
        _print_error(f"{_STOPPED[code]}; the same command resumes", None, code, as_json)
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
    if hasattr(error, "format_message"):  # Typer's usage errors
        return _usage(error, as_json)
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


def _usage(error: Any, as_json: bool) -> int:
    """What is wrong with the command line itself, as other mistakes are told."""
    context = getattr(error, "ctx", None)
    if context is not None and error.message == context.get_help():  # no command was given
        if as_json:
            _print_error("no command; --help shows them", None, 2, as_json)
        else:
            error.show()
        return 2
    parameter, message = getattr(error, "param", None), error.format_message().rstrip(".")
    if parameter is not None and error.message:
        name = max(parameter.opts, key=len) if parameter.param_type_name == "option" else ""
        message = f"{name or parameter.name.upper()}: {_lower(error.message.rstrip('.'))}"
    hint = f"{context.command_path} --help" if context is not None else None
    _print_error(_lower(message), hint, 2, as_json)
    return 2


def _lower(text: str) -> str:
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


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
