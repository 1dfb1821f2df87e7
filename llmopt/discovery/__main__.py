"""A process that discovers one type: config.json on stdin, what is found as JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import sys


def main() -> None:
    """{"families": {type: data}}, or {"error": why it cannot be walked}."""
    config = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            import transformers

            from llmopt.discovery.families import discover

            logging.disable(logging.WARNING)
            transformers.utils.logging.disable_progress_bar()
            answer: dict[str, object] = {"families": discover(config)}
        except Exception as error:  # of every type: models refuse configs in all ways
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    json.dump(answer, sys.stdout)


main()
