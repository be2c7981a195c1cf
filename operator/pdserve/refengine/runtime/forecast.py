"""Forecasts for the next request: how long it takes, and when a slot is free.

Functions of what runs and what `estimates` learned. Seconds throughout; `now` is of the engine's
monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from pdserve.refengine.runtime.estimates import Estimates, Span
from pdserve.refengine.runtime.handoff import Handoff
from pdserve.refengine.runtime.request import GenerationRequest
from pdserve.refengine.runtime.sequence import Phase, Sequence


def leg_seconds(
    estimates: Estimates,
    now: float,
    request: GenerationRequest,
    cached: int,
    active: Collection[Sequence],
    chunk: int,
) -> float:
    """Until the request's first token here: its KV is pulled, or its prompt computed.

    Args:
        estimates: of this instance.
        now: when it would begin.
        request: not begun yet.
        cached: tokens of its prompt that need not be computed.
        active: the requests that run; prompts among them are computed before.
        chunk: prompt tokens of a step while answers run, which each have a token in it too.
    """
    if request.remote is not None:
        return estimates.transfer.get(0.0)
    before = [
        (s.computed, s.request.prompt_tokens) for s in active if not s.prefilled and not s.in_step
    ]
    spans = [*before, (cached, request.prompt_tokens)]
    seconds = estimates.prefill_after(now, spans)
    running = [s.computed for s in active if s.decodes]
    if running:
        steps = -(-sum(end - start for start, end in spans) // chunk)
        seconds += steps * estimates.decode_seconds(len(running), sum(running))
    return seconds


def least_left(estimates: Estimates, now: float, active: Collection[Sequence]) -> float:
    """Fewest seconds that a prompt has which waits for the next step; infinite without one.

    `now`: monotonic seconds. Of those of `active` that have a budget and would be in time.
    """
    waiting = [s for s in active if not s.prefilled and not s.in_step]
    if not waiting:
        return math.inf
    done = estimates.prefill_after(now, [(s.computed, s.request.prompt_tokens) for s in waiting])
    left = [s.accepted_at + s.request.budget - now for s in waiting if s.request.budget is not None]
    return min((seconds for seconds in left if seconds >= done), default=math.inf)


def slowest_tpot(
    estimates: Estimates, now: float, new: Span, active: Collection[Sequence]
) -> float:
    """Mean seconds per token of the answer that would end up slowest, of those accepted before.

    An answer whose prompt is still computed has no tokens yet that the new prompt could delay, but
    its steps become longer too.

    Args:
        estimates: of this instance.
        now: when the new prompt would begin.
        new: its [computed, total) positions.
        active: the requests that run; prompts among them are computed too.
    """
    spans = [(s.computed, s.request.prompt_tokens) for s in active if not s.prefilled]
    work = estimates.added_by([*spans, new])
    context = sum(s.computed for s in active) + new[1]
    step = estimates.decode_seconds(len(active) + 1, context)
    delayed = ((s, work if s.decodes else 0.0) for s in active)
    return max((_mean_token(estimates, now, s, step, added) for s, added in delayed), default=0.0)


def _mean_token(
    estimates: Estimates, now: float, sequence: Sequence, step: float, work: float
) -> float:
    """Seconds per token after the first, over the whole answer, with `work` seconds on top."""
    produced = len(sequence.output)
    left = estimates.tokens_left(produced, sequence.request.max_tokens)
    so_far = now - (sequence.first_token_at or now)
    steps = left if produced else left - 1  # the first token comes with the prompt
    return (so_far + work + steps * step) / max(1.0, produced - 1 + left)


def prefill_free_in(
    estimates: Estimates, now: float, active: Collection[Sequence], handoff: Handoff
) -> float:
    """Seconds until a slot of a prefill is free, 0 or more.

    A slot is held until its KV was pulled.
    """
    hold = handoff.hold_seconds.get(0.0)
    waits = [max(0.0, hold - handoff.oldest_hold())] if len(handoff) else []
    if active:
        waits.append(estimates.step_left(now) + hold)
    return min(waits, default=0.0)


def decode_free_in(estimates: Estimates, active: Collection[Sequence]) -> float:
    """Seconds until a slot of a decode (or of an instance of both roles) is free, 0 or more."""
    left = [
        estimates.tokens_left(len(s.output), s.request.max_tokens)
        for s in active
        if s.phase is Phase.RUNNING
    ]
    return min(left, default=1.0) * estimates.decode_step.get(0.0)
