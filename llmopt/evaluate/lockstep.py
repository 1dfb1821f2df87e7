"""Models that do not fit in memory side by side: each is walked a block at a time.

First every model's last hidden states are computed, one model after the other. Then all of them
are compared: a slice of the vocabulary after the other, of every head at once, on all windows.
The base is walked once, whatever the number of models, and no logits are kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from llmopt.artifact import Artifact
from llmopt.blockwalk import memory
from llmopt.blockwalk.head import token_runs
from llmopt.blockwalk.state import WalkState, digest, environment
from llmopt.evaluate.positions import SideBySide
from llmopt.evaluate.probe import Reading, Subject
from llmopt.evaluate.streamed import Scores
from llmopt.evaluate.windows import Windows, check_vocabularies, check_windows
from llmopt.formats.safetensors import read_tensor, write_file
from llmopt.formats.safetensors_header import read_file_headers, read_metadata
from llmopt.specs.walking import HEAD_POSITIONS

#: told (what, done, total)
Progress = Callable[[str, int, int], None]


class Lockstep:
    """What is found of models on windows of text.

    groups: models that are compared at once with the first of their group, or a model by itself;
    each model but the first of several is in one. opens: how a model is asked for logits.
    What is computed is kept in `folder`: a killed evaluation goes on there and ends with the same
    numbers.
    """

    def __init__(
        self, groups: Sequence[Sequence[Artifact]], windows: Tensor,
        opens: Callable[[Artifact], Scores], folder: Path, *,
        device: torch.device, seed: int, progress: Progress,
    ) -> None:  # fmt: skip
        check_windows(windows)
        self._groups, self._windows, self._opens = groups, windows, opens
        self._folder, self._state = folder, WalkState(folder)
        self._device, self._seed, self._progress = device, seed, progress
        self._bases: dict[str, Scores] = {}
        self._found: dict[str, Windows] = {}

    def measure(self, subject: Subject) -> Iterator[Reading]:
        """Compare the model's whole group when one of it is first asked for."""
        name, total = subject.model.name, len(self._windows)
        yield Reading(0, total)
        if name not in self._found:
            measured = [[model.name for model in _measured(group)] for group in self._groups]
            self._compare(next(place for place, names in enumerate(measured) if name in names))
        yield self._found[name].reading(total)

    def _compare(self, place: int) -> None:
        names = [[model.name for model in group] for group in self._groups]
        settings = {"tokens": digest(self._windows), "groups": names, **environment(self._device)}
        memory.steady()
        with self._state.resumed(settings, self._clear):
            base, *others = self._groups[place]
            if base.name not in self._bases:
                self._bases = {base.name: self._prepared(base)}
            scores = [self._bases[base.name], *map(self._prepared, others)]
            check_vocabularies(self._windows, *(each.vocabulary for each in scores))
            found = self._side_by_side(scores, self._folder / f"group-{place}.safetensors")
        for index, model in enumerate(_measured(self._groups[place])):
            self._found[model.name] = Windows(self._windows.shape[1], self._seed)
            self._found[model.name].add(found, index)

    def _prepared(self, model: Artifact) -> Scores:
        scores, what = self._opens(model), f"blocks of {model.name}"
        scores.prepare(lambda done, total: self._progress(what, done, total))
        return scores

    def _side_by_side(self, scores: Sequence[Scores], path: Path) -> SideBySide:
        """All positions; what is known of them is kept in `path` now and then."""
        targets = self._windows[:, 1:].reshape(-1).to(self._device)
        found, done = SideBySide(targets, len(scores) - 1), 0
        if path.is_file():
            found.restore({name: read_tensor(at) for name, at in read_file_headers(path).items()})
            done = int(read_metadata(path)["done"])
        parts, what = list(self._parts(scores)), "slices of the vocabulary"
        self._progress(what, done, len(parts))
        for index, (windows, tokens) in enumerate(parts[done:], done):
            self._add(found, scores, windows, tokens)
            memory.release()
            if len(windows) == len(self._windows) or tokens.stop == scores[0].vocabulary:
                write_file(path, found.state(), {"done": str(index + 1)})
            self._progress(what, index + 1, len(parts))
        return found

    def _add(
        self, found: SideBySide, scores: Sequence[Scores], windows: range, tokens: range
    ) -> None:
        positions = self._windows.shape[1] - 1
        with ExitStack() as stack:
            for each in scores:
                stack.enter_context(each.tokens(tokens.start, tokens.stop))
            for window in windows:
                for run in _runs(positions, HEAD_POSITIONS):
                    rows = slice(run.start, run.stop)
                    logits = [each.logits(window, rows).to(self._device) for each in scores]
                    found.add(window * positions + run.start, tokens.start, logits)

    def _parts(self, scores: Sequence[Scores]) -> Iterator[tuple[range, range]]:
        """Windows and tokens that are looked at together.

        An engine gives all logits of a window at once, so windows are then looked at one by one,
        and what is known is kept when one is done.
        """
        width, vocabulary = sum(each.width for each in scores), scores[0].vocabulary
        whole = any(not each.width for each in scores)
        for windows in _runs(len(self._windows), 1 if whole else len(self._windows)):
            for tokens in token_runs(vocabulary, max(width, 1)):
                yield windows, tokens

    def _clear(self) -> None:
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".safetensors":
                path.unlink()


def _measured(group: Sequence[Artifact]) -> Sequence[Artifact]:
    """All but the first, or the one that is alone."""
    return group[1:] or group


def _runs(count: int, step: int) -> Iterator[range]:
    return (range(start, min(start + step, count)) for start in range(0, count, step))
