"""What thinning does to each tensor and to the config, from headers alone. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from llmopt.errors import RequestError
from llmopt.model.apply import apply
from llmopt.model.change import Change, ConfigChange
from llmopt.model.contents import Contents, LogicalTensor
from llmopt.model.footprint import Footprint
from llmopt.step import PlanContext, Planned, PlannedStep
from llmopt.verbs.shared import gates
from tests.thin.settings import ThinSettings

_LAYER = re.compile(r"(?P<before>.*\.layers\.)(?P<index>\d+)(?P<after>\..*)")
#: of an MLP's linears, the side that its channels are on
_SIDES = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}


def plan(settings: ThinSettings, context: PlanContext) -> Planned:
    """The step, a bench against the teacher, and a gate."""
    model, teacher = context.model(), context.model("teacher")
    contents = context.contents(model.name)
    with context.source.at((*context.key, "layer")):
        _check(settings, contents)
    changes = tuple(_changes(settings, contents))
    config_changes = (
        ConfigChange(key=("num_hidden_layers",), value=contents.naming.block_count - 1),
        ConfigChange(key=("intermediate_size",), value=settings.width),
    )
    step = PlannedStep(
        id=context.id,
        verb="thin",
        settings=settings,
        inputs=(model, teacher),
        key=context.key,
        seed=context.seed,
        changes=changes,
        config_changes=config_changes,
        footprint=Footprint(1 << 30, 2 * sum(change.bytes for change in changes)),
        summary=f"thin to {settings.width} channels without layer {settings.layer}",
    )
    after = apply(contents, changes, config_changes, format_id=None)
    planned = gates.gated(Planned((step,), after), settings.gate, "parent", context)
    if not settings.score:
        return planned
    asked = {"from": [context.id], "against": teacher.name, "speed": False}
    return planned.after(*context.step("bench", asked, "score", contents=after))


def _check(settings: ThinSettings, contents: Contents) -> None:
    if settings.layer >= contents.naming.block_count:
        raise RequestError(f"the model has {contents.naming.block_count} layers")


def _changes(settings: ThinSettings, contents: Contents) -> Iterator[Change]:
    for tensor in contents.tensors.values():
        kept = Change(
            name=tensor.name, actions=("kept",), shape=tensor.shape, bytes=tensor.nbytes,
            dtype=tensor.dtype,
        )  # fmt: skip
        match = _LAYER.fullmatch(tensor.name)
        if match is None:
            yield kept
        elif (index := int(match["index"])) == settings.layer:
            yield replace(kept, actions=("dropped",), bytes=0, why="the layer goes")
        else:
            index -= index > settings.layer
            name = f"{match['before']}{index}{match['after']}"
            cut = _cut(tensor, settings.width)
            actions = ("kept",) if cut == tensor.shape else ("reshaped",)
            size = tensor.nbytes * math.prod(cut) // math.prod(tensor.shape)
            yield replace(
                kept, name=name, sources=(tensor.name,), actions=actions, shape=cut, bytes=size
            )


def _cut(tensor: LogicalTensor, width: int) -> tuple[int, ...]:
    side = _SIDES.get(tensor.name.split(".")[-2])
    shape = list(tensor.shape)
    if side is not None:
        shape[side] = width
    return tuple(shape)
