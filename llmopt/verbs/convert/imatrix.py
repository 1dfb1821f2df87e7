"""The convert step to an importance matrix: what the squares of inputs are on calibration text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from llmopt.blockwalk import LiveBlock, Sink, walk
from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.gguf.export import placements
from llmopt.formats.imatrix import Imatrix, InputSquares, write_imatrix
from llmopt.formats.quantization import read_contents
from llmopt.formats.safetensors import read_tensor, write_file
from llmopt.formats.safetensors_header import read_file_headers
from llmopt.formats.shards import ShardWriter
from llmopt.linalg import InputMoments
from llmopt.runtimes.device import pick_device
from llmopt.specs import KINDS
from llmopt.step import Outcome, Work
from llmopt.verbs.convert import gguf_types as gguf
from llmopt.verbs.convert.settings import ConvertSettings, ImatrixTarget
from llmopt.verbs.shared import texts as text


def run(work: Work) -> Outcome:
    """Walk the parent model, unchanged, and write what its inputs are into `work.folder`.

    Twice, for tools that read llama.cpp's older form: the files are small.
    """
    parent, target = work.input(), work.asked(ConvertSettings).target
    assert isinstance(target, ImatrixTarget)
    checkpoint = Checkpoint.open(parent.path)
    tokens, corpus = text.checked_calibration(work, checkpoint.folder)
    device = pick_device(work.options.device)
    squares = _Squares(work.state / "squares")
    work.progress("blocks", 0, checkpoint.naming.block_count + 1)
    walk(
        checkpoint, tokens, [squares], Sink(ShardWriter(work.state / "parts")),
        work.state / "walk",
        head=True,
        batch_size=target.batch_size,
        device=device,
        activations_in_file=work.step.arrangement.activations_in_file,
        on_block=lambda done, total: work.progress("blocks", done, total),
    )  # fmt: skip
    entries = _entries(checkpoint, squares)
    matrix = Imatrix(
        entries=entries, chunks=len(tokens), chunk_size=tokens.shape[1],
        datasets=(corpus.name,),
    )  # fmt: skip
    for name in KINDS["imatrix"].files.values():
        write_imatrix(work.folder / name, matrix)
    return Outcome(format="imatrix", corpus=corpus, run={"device": str(device)})


class _Squares:
    """The walk's pass: E[x^2] of every linear's inputs, in files that outlive a kill."""

    changes = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def apply(self, block: LiveBlock) -> None:
        """Keep what flows into the block's linears."""
        for inlet in block.inlets(InputMoments()):
            seen = inlet.squares
            assert seen is not None
            for name in inlet.names:
                kept = {"mean": seen.mean.cpu(), "tokens": torch.tensor([seen.tokens])}
                write_file(self._path(name), kept, {})

    def of(self, name: str) -> tuple[Tensor, Tensor] | None:
        """float32 [cols] and int64 [1] tokens of a linear; None where it was not walked."""
        if not self._path(name).is_file():
            return None
        headers = read_file_headers(self._path(name))
        return read_tensor(headers["mean"]), read_tensor(headers["tokens"])

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _entries(checkpoint: Checkpoint, squares: _Squares) -> dict[str, InputSquares]:
    """By the names of GGUF files; a head that is the embedding counts as output.weight."""
    naming, found = checkpoint.naming, {}
    for place in placements(read_contents(checkpoint.folder), tied=checkpoint.tied):
        kept = [squares.of(source.removesuffix(".weight")) for source in place.sources]
        known = [each for each in kept if each is not None]
        if known and len(known) == len(kept):
            means, tokens = zip(*known, strict=True)
            found[place.name] = InputSquares.of(torch.stack(means), torch.cat(tokens))
    if checkpoint.tied and (head := squares.of(naming.head)):
        found[gguf.HEAD] = InputSquares.of(head[0].unsqueeze(0), head[1])
    return found
