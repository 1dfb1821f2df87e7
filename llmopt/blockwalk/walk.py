"""The walk: every block in turn is calibrated, changed, written and left behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmopt.blockwalk import memory
from llmopt.blockwalk.block import Transform
from llmopt.blockwalk.calibrated import CalibratedWalk
from llmopt.blockwalk.inlet import Inlet, LiveWeights, Operation
from llmopt.blockwalk.plan import OnBlock, Plan
from llmopt.blockwalk.sink import PartResults, Sink
from llmopt.blockwalk.state import WalkState
from llmopt.errors import LlmoptError
from llmopt.formats.checkpoint import Checkpoint


def walk(
    checkpoint: Checkpoint,
    tokens: Tensor | None,
    operations: Sequence[Operation],
    sink: Sink,
    state_folder: Path,
    *,
    transforms: Sequence[Transform] = (),
    head: bool = False,
    batch_size: int = 2,
    true_sequential: bool = False,
    idle: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    save_every: int = 8,
    on_block: OnBlock | None = None,
) -> dict[str, Any]:
    """Apply `operations` to every inlet of every block, and of the head if `head`.

    Each block is first given to the `transforms`, with statistics of all its linears, and then to
    the operations, with statistics of what the transforms made of it.

    tokens: calibration, int64 [sequences, length]; None where no operation needs statistics, and
    then nothing is computed but the operations. All results go to `sink`, and all that does not
    change is kept there, so that each tensor of the checkpoint is accounted for once. With
    `true_sequential` each inlet's statistics are collected after the inlets before it in the same
    block were changed, else once for each block. A head that shares the embedding's weight gets
    one of its own: the result's config must then say that they are not tied. `idle` says that
    operations look and change nothing: one pass over each block is then enough. It goes without
    transforms and `true_sequential`.

    A walk that was killed goes on when it is called again with the same arguments, `state_folder`
    and sink, and gives the same bytes. Activations are saved every `save_every` blocks; what was
    computed since is replayed from the finished parts. Arguments, software or a CPU that changed
    in between start it anew; a different checkpoint or other operations need another folder.

    Returns what operations recorded, by module name.
    """
    if idle and (true_sequential or transforms):
        raise LlmoptError("an idle walk changes nothing, so nothing comes in sequence")
    memory.steady()
    plan = Plan(
        checkpoint=checkpoint,
        tokens=tokens,
        operations=operations,
        transforms=transforms,
        sink=sink,
        head=head,
        batch_size=batch_size,
        true_sequential=true_sequential,
        idle=idle,
        dtype=dtype,
        device=torch.device(device),
        save_every=save_every,
        on_block=on_block,
    )
    return _walk(plan, WalkState(state_folder))


def _walk(plan: Plan, state: WalkState) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(state.locked())
        if not state.matches(plan.settings()):
            plan.sink.writer.clear()
            state.start(plan.settings(), torch.get_num_threads())
        stack.enter_context(state.same_threads())
        stack.enter_context(torch.no_grad())
        done = plan.done()
        if plan.tokens is None:
            _walk_without_data(plan, done)
        elif done < plan.total:
            CalibratedWalk(plan, plan.tokens, state).run(done)
        return plan.keep_the_rest()


def _walk_without_data(plan: Plan, done: int) -> None:
    for index in range(done, plan.total):
        weights = LiveWeights(plan.checkpoint, PartResults())
        for names in plan.inlets(index):
            plan.apply(Inlet(names, weights, None, lambda *_: None, plan.device))
        plan.write(index, weights.results)
        plan.tell(index)
