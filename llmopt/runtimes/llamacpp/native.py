"""llama.cpp as a library in this process: ready, quiet, and its complaints kept."""

from __future__ import annotations

import re
from collections import deque
from functools import cache
from typing import Any

from llmopt.errors import require

_ERROR, _CONTINUED = 4, 5  # ggml_log_level


class Native:
    """`api` has llama.cpp's C functions. What it logs goes nowhere, but for the last errors."""

    def __init__(self) -> None:
        package = require("llama_cpp", extra="llamacpp", purpose="running a GGUF file")
        self.api: Any = package
        self._errors: deque[str] = deque(maxlen=16)
        self._level = 0
        # kept here: llama.cpp calls it for as long as the process lives
        self._listener = package.llama_log_callback(self._listen)
        self.listen()
        package.llama_backend_init()

    def listen(self) -> None:
        """Take over what llama.cpp logs, from whoever had it."""
        self.api.llama_log_set(self._listener, None)

    def _listen(self, level: int, text: bytes, _: object) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level == _ERROR:
            self._errors.append(text.decode("utf-8", errors="replace"))

    def forget(self) -> None:
        """Start anew before a call whose complaint may be wanted."""
        self._errors.clear()

    def complaint(self) -> str:
        """What went wrong since `forget`, in llama.cpp's words: the first error is the cause."""
        lines = "".join(self._errors).strip().splitlines()
        names = r"^(\w+: )*(error loading model: )?(\w+: )*"  # of its functions
        return re.sub(names, "", lines[0]) if lines else "it does not say why"


@cache
def native() -> Native:
    """The one there is; MissingDependency where llama-cpp-python is not installed."""
    return Native()
