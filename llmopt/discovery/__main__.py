"""A process that discovers one type: config.json on stdin, what is found as JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from llmopt.errors import LlmoptError


def main() -> None:
    """{"families": {type: data}}, or {"error": why it cannot be walked}."""
    config = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer: dict[str, object] = {"families": _found(config)}
        except LlmoptError as error:
            answer = {"error": error.message}
        except Exception as error:  # of every type: models refuse configs in all ways
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    json.dump(answer, sys.stdout)


def _found(config: Mapping[str, Any]) -> Mapping[str, object]:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:  # without torch, in a second
        raise LlmoptError(f"transformers {transformers.__version__} has no such type")
    from llmopt.discovery.families import discover

    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    return discover(config)


if __name__ == "__main__":
    main()
