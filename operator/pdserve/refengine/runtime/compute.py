"""The work of the compute thread in one step: forward pass, sampling, gathering KV to hand over.

It runs beside the event loop. So it may read only what a step was given, and write only the KV
blocks of the step's own sequences.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.refengine.kv.payload import Payload, gather
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.sampler import Sampled, sample
from pdserve.refengine.model.tensors import Array
from pdserve.refengine.runtime.batch import Batch

Banned = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Per member of the batch: the chosen token (None without logits) and KV to hand over."""

    sampled: tuple[Sampled | None, ...]
    payloads: tuple[Payload | None, ...]
    seconds: float


def run(step: Batch, banned: Sequence[Banned], model: LoadedModel, memory: Array) -> StepResult:
    """Compute one step; `banned` are the tokens each member may not choose."""
    begin = time.perf_counter()
    logits = iter(model.llama.step([m.rows for m in step.members], memory))
    sampled: list[Sampled | None] = []
    payloads: list[Payload | None] = []
    for member, ends in zip(step.members, banned, strict=True):
        token, payload = None, None
        if member.rows.logits:
            request = member.sequence.request
            token = sample(next(logits), request.sampling, member.end, ends)
            if request.hand_over:
                blocks = member.sequence.blocks
                if model.mirror is not None:
                    model.mirror.fetch(list(blocks[: blocks_for(member.end)]))
                payload = gather(memory, blocks, member.end, model.config)
        sampled.append(token)
        payloads.append(payload)
    return StepResult(tuple(sampled), tuple(payloads), time.perf_counter() - begin)
