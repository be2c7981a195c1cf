"""What goes into the next step: a pure choice over the running sequences.

First one decode token of every running sequence whose prompt is complete, then prompt chunks in
order of acceptance, each at most `chunk` tokens, together at most `budget`. Mixing both in one step
keeps the times between tokens even, also in an aggregated instance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.model.plan import Rows
from pdserve.refengine.runtime.sequence import Phase, Sequence


@dataclass(frozen=True, slots=True)
class BatchMember:
    """One sequence's part in a step; `samples` when its logits choose a token."""

    sequence: Sequence
    rows: Rows

    @property
    def end(self) -> int:
        """How many positions have KV after the step."""
        return self.rows.start + len(self.rows.tokens)

    @property
    def is_prompt(self) -> bool:
        """A prompt chunk (else one decode token)."""
        return self.rows.start < self.sequence.request.prompt_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """The members of one step, decodes first."""

    members: tuple[BatchMember, ...]

    @property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """[start, end) of the prompt chunks."""
        return tuple((m.rows.start, m.end) for m in self.members if m.is_prompt)

    @property
    def prompt_tokens(self) -> int:
        """How many prompt tokens the step computes."""
        return sum(end - start for start, end in self.chunks)

    @property
    def decodes(self) -> int:
        """How many sequences decode in the step."""
        return sum(not m.is_prompt for m in self.members)

    @property
    def context(self) -> int:
        """Context of the decoding sequences together, in tokens."""
        return sum(m.end for m in self.members if not m.is_prompt)


def build(sequences: Iterable[Sequence], budget: int, chunk: int) -> Batch:
    """Compose the next step from `sequences` (in order of acceptance).

    Decoding sequences come first, one token each. `budget`: most prompt tokens of the step;
    `chunk`: most of one sequence.
    """
    running = [s for s in sequences if s.phase is Phase.RUNNING]
    members = [_member(s, 1) for s in running if s.prefilled]
    for sequence in (s for s in running if not s.prefilled):
        if budget <= 0:
            break
        member = _member(sequence, min(chunk, budget))
        budget -= len(member.rows.tokens)
        members.append(member)
    return Batch(tuple(members))


def _member(sequence: Sequence, limit: int) -> BatchMember:
    tokens = sequence.pending(limit)
    end = sequence.computed + len(tokens)
    table = np.asarray(sequence.blocks[: blocks_for(end)], np.int64)
    wants = end >= sequence.request.prompt_tokens
    return BatchMember(sequence, Rows(tokens, sequence.computed, table, wants))
