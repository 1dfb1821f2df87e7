"""What a walk leaves on disk, so that a killed one goes on and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from llmopt import processor
from llmopt.blockwalk.activations import SCRATCH, Activations, Batch, Room
from llmopt.errors import LlmoptError
from llmopt.formats.files import read_json
from llmopt.formats.safetensors import read_rows, torch_dtype, write_rows
from llmopt.formats.safetensors_header import read_file_headers, read_metadata

_LOCK = "lock"
_SETTINGS = "walk.json"
_ACTIVATIONS = "activations.safetensors"


class WalkState:
    """The state folder of one walk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; the system lifts the lock when this one dies."""
        import fcntl

        with (self._folder / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise LlmoptError(
                    f"another process is working in {self._folder}",
                    hint="wait until it ends; the work is then done",
                ) from error
            yield

    @contextmanager
    def resumed(
        self, settings: Mapping[str, object], clear: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Within, the folder is this walk's: begun anew, after `clear`, if it had other settings.

        Nothing is differentiated, and torch has the threads that the walk began with.
        """
        with self.locked():
            if not self._matches(settings):
                clear()
                self._start(settings, torch.get_num_threads())
            self._clear_scratch()
            with self._same_threads(), torch.no_grad():
                yield

    def save(self, block: int, activations: Activations) -> None:
        """Keep the activations that flow into a block."""
        keep(self._folder / _ACTIVATIONS, activations, {"block": str(block)})

    def load(self, room: Room) -> tuple[int, Activations] | None:
        """The activations kept last, and the block they flow into."""
        path = self._folder / _ACTIVATIONS
        if not path.is_file():
            return None
        header = read_file_headers(path)["activations"]
        activations = room.make("activations", header.shape, torch_dtype(header))
        for rows in _sequences(activations):
            activations[rows] = read_rows(header, rows.start, rows.stop)
        return int(read_metadata(path)["block"]), activations

    def forget(self) -> None:
        """Remove activations: all blocks are done."""
        (self._folder / _ACTIVATIONS).unlink(missing_ok=True)
        self._clear_scratch()

    def _clear_scratch(self) -> None:
        for path in self._folder.glob(f"*{SCRATCH}"):
            path.unlink()

    def _matches(self, settings: Mapping[str, object]) -> bool:
        """Whether the walk in this folder was started with the same settings."""
        path = self._folder / _SETTINGS
        return path.is_file() and read_json(path)["settings"] == dict(settings)

    def _start(self, settings: Mapping[str, object], threads: int) -> None:
        """Begin anew with these settings."""
        (self._folder / _ACTIVATIONS).unlink(missing_ok=True)
        text = json.dumps({"settings": dict(settings), "threads": threads}, indent=2)
        partial = self._folder / (_SETTINGS + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self._folder / _SETTINGS)

    def _same_threads(self) -> AbstractContextManager[None]:
        """Compute with as many threads as the walk began with: sums depend on it."""
        threads = read_json(self._folder / _SETTINGS)["threads"]
        assert isinstance(threads, int)
        return processor.computing_threads(threads)


def keep(path: Path, activations: Activations, metadata: Mapping[str, str]) -> None:
    """Write activations to a safetensors file, a sequence in memory at a time."""
    pieces = (activations[rows] for rows in _sequences(activations))
    write_rows(path, "activations", activations.shape, activations.dtype, pieces, metadata)


def _sequences(activations: Activations) -> Iterator[Batch]:
    return (slice(start, start + 1) for start in range(activations.shape[0]))


def environment(device: torch.device) -> dict[str, object]:
    """What, beside its arguments, the last bits of a walk's results depend on."""
    return {"device": str(device), "torch": torch.__version__, "cpu": processor.identity()}


def digest(tokens: Tensor) -> str:
    """What tells tokens from others in a walk's settings."""
    return hashlib.sha256(tokens.cpu().contiguous().numpy().tobytes()).hexdigest()
