"""The work: part by part, so that a killed run goes on where it was."""

from __future__ import annotations

import time
from collections import defaultdict

from torch import Tensor

from llmopt.formats.checkpoint import Checkpoint
from llmopt.formats.shards import ShardWriter
from llmopt.model.change import Change
from llmopt.model.ledger import LedgerEntry
from llmopt.step import Outcome, Work
from llmopt.verbs.shared.side_files import copy_side_files, write_config
from tests.thin.settings import ThinSettings

#: seconds a layer, so that a test has time to kill it
PAUSE = 0.2


def run(work: Work) -> Outcome:
    """Write what is left of the model into `work.folder`."""
    settings = work.step.settings
    assert isinstance(settings, ThinSettings)
    checkpoint, teacher = (Checkpoint.open(work.input(r).path) for r in ("model", "teacher"))
    parts: dict[str, list[Change]] = defaultdict(list)
    for change in work.step.changes:
        if change.written:
            parts[".".join(change.sources[0].split(".")[:3])].append(change)
    writer = ShardWriter(work.state / "parts")
    done = set(writer.parts())
    for count, (part, changes) in enumerate(parts.items(), 1):
        if part not in done:
            tensors = {each.name: _made(each, checkpoint, teacher, settings) for each in changes}
            writer.write(part, tensors)
            time.sleep(PAUSE)
        work.progress("parts", count, len(parts))
    writer.finalize(work.folder)
    others = copy_side_files(checkpoint, work.folder)
    write_config(checkpoint.config, work.folder, work.step.config_changes)
    return Outcome(
        format="hf",
        ledger=[LedgerEntry.of_change(change) for change in work.step.changes],
        config_changes=work.step.config_changes,
        evidence=others,
    )


def _made(
    change: Change, checkpoint: Checkpoint, teacher: Checkpoint, settings: ThinSettings
) -> Tensor:
    """What is left of a tensor."""
    (source,) = change.sources
    tensor = checkpoint.read(source)
    if "reshaped" not in change.actions:
        return tensor
    mlp = source.rsplit(".", 2)[0]
    weights = teacher.read(f"{mlp}.down_proj.weight").float()
    chosen = weights.square().sum(0).topk(settings.width).indices.sort().values
    side = 1 if source.endswith("down_proj.weight") else 0
    return tensor.index_select(side, chosen).contiguous()
