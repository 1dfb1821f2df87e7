"""A program of its own that renders chat messages with a template, which may be hostile.

Started by `corpora.chat`, which ends it when a template does not. Reads JSON lines: first
{"template", "variables", "seconds", "bytes", "memory"}, then a list of messages each; answers each
line with {"text"} or {"error"}. transformers' own sandbox keeps a template from Python; the limits
here keep it from the machine's memory and time.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Answer lines until the input ends."""
    from transformers.utils.chat_template_utils import render_jinja_template

    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    _limit_memory(asked["memory"])
    _answer({})
    for line in sys.stdin:
        _limit_time(asked["seconds"])
        try:
            (text,), _ = render_jinja_template(
                conversations=[json.loads(line)],
                chat_template=asked["template"],
                **asked["variables"],
            )
            long = len(text.encode("utf-8", errors="surrogatepass")) > asked["bytes"]
            _answer({"error": "it makes too much text of them"} if long else {"text": text})
        except MemoryError:
            _answer({"error": "it takes too much memory"})
        except Exception as error:  # templates raise what they like, jinja2's errors among it
            _answer({"error": str(error) or type(error).__name__})


def _answer(document: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _limit_memory(count: int) -> None:
    try:
        import resource
    except ImportError:  # no Unix: the clock alone ends a template
        return
    resource.setrlimit(resource.RLIMIT_AS, (count, count))


def _limit_time(seconds: int) -> None:
    """End this program, should nobody be left to do it, after so much more processor time."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
