"""What transformers says of a config.json that it can make nothing of. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llmopt.errors import RequestError


@contextmanager
def using_config() -> Iterator[None]:
    """Around calls of transformers whose only input is config.json.

    RequestError, with the cause in one line, for whatever they raise: its checks raise, and trip
    over, errors of every type.
    """
    try:
        yield
    except Exception as error:
        given = error.args[0] if isinstance(error, KeyError) and error.args else error
        cause = f"{type(error).__name__}: {' '.join(str(given).split())}"
        raise RequestError(f"transformers cannot use config.json: {cause}") from error
