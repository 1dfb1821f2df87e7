"""Types that no data has: a process of its own runs a tiny model of the config. No torch here.

What it found is kept among the caches, by the config, the version of transformers and our own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llmopt.caches import cache_folder
from llmopt.specs.family import NOT_THE_MODEL

#: set where a tiny model is looked at: it starts no other
_UNDER_WAY = "LLMOPT_DISCOVERING"
#: a tiny model takes seconds; importing what builds it can take longer
_SECONDS = 300


def discovered(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"families": {type: data}}, or {"error": why there is none}."""
    told = {key: value for key, value in config.items() if key not in NOT_THE_MODEL}
    path = cache_folder() / "families" / f"{_key(told)}.json"
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return known
    if os.environ.get(_UNDER_WAY):
        return {"error": "a tiny model of it has other blocks than the model"}
    found = _asked(json.dumps(told, sort_keys=True))
    if "families" not in found:  # what keeps it from running may be mended
        return found
    with contextlib.suppress(OSError):  # a home that cannot be written only costs the next run time
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    return found


@cache
def _asked(config: str) -> dict[str, Any]:
    """What a child answers; a process asks once."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "llmopt.discovery"],  # nothing of the working folder
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", _UNDER_WAY: "1"}, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            answer, _ = process.communicate(config, timeout=_SECONDS)
            found: dict[str, Any] = json.loads(answer)
        except subprocess.TimeoutExpired:
            return {"error": f"a tiny model of it did not run in {_SECONDS} s"}
        except ValueError:
            return {"error": "a tiny model of it does not run"}
        finally:
            if process.poll() is None:  # it took too long, or whoever waits is interrupted
                os.killpg(process.pid, signal.SIGKILL)
    return found


def _code() -> str:
    """What looks at models, so that other code looks again."""
    folder = Path(__file__).parents[1] / "discovery"
    return "".join(path.read_text("utf-8") for path in sorted(folder.glob("*.py")))


def _key(config: Mapping[str, Any]) -> str:
    versions = [importlib.metadata.version(name) for name in ("llmopt", "transformers")]
    text = json.dumps([versions, _code(), config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
