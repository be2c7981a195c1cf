"""The cycle of steps: one batch at a time on the compute thread, counted and paced.

The owner chooses the next batch and hands out the results. This module runs the batch and reports
each exactly once: it is `done`, or it has `failed`. All state belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.model.tensors import Array
from pdserve.refengine.runtime import compute
from pdserve.refengine.runtime.batch import Batch
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.step_worker import Worker

log = logging.getLogger(__name__)


class StepOwner(Protocol):
    """What a step is made of, and who gets its results."""

    def next_batch(self) -> Batch:
        """The members of the next step; without any, none is run."""

    def settled(self, step: Batch) -> None:
        """Nothing writes into the blocks of a step's members any more."""

    def done(self, step: Batch, result: compute.StepResult) -> None:
        """A step is computed, and its time is over."""

    def failed(self, step: Batch, error: BaseException) -> None:
        """A step raised: what the blocks of its members hold is unknown."""

    def not_started(self, error: Exception) -> None:
        """No step could be made or started."""


class Steps:
    """Runs one step after another while there is something to compute."""

    def __init__(
        self,
        owner: StepOwner,
        model: LoadedModel,
        memory: Array,
        estimates: Estimates,
        metrics: EngineMetrics,
        pacer: Pacer | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`memory` is the KV pool that steps read and write."""
        self._owner, self._model, self._memory = owner, model, memory
        self._estimates, self._metrics, self._pacer = estimates, metrics, pacer
        self._loop = loop
        # Not the loop's clock: uvloop's has a resolution of 1 ms and stands still inside a turn.
        self._now: Callable[[], float] = time.monotonic
        self._running: Batch | None = None
        self._worker = Worker(loop)

    def pump(self) -> None:
        """Start the next step when none runs."""
        if self._running is not None:
            return
        try:
            self._start()
        except Exception as error:
            log.exception("no step could be started")
            self._running = None
            self._owner.not_started(error)

    def stop(self) -> None:
        """End the compute thread after the step that it runs."""
        self._worker.stop()

    def _start(self) -> None:
        step = self._owner.next_batch()
        if not step.members:
            return
        banned = [m.sequence.text.banned() if m.rows.logits else () for m in step.members]
        now = self._now()
        started = now if self._pacer is None else self._pacer.begin(now)
        self._estimates.step_began(step, started)
        self._running = step
        for member in step.members:
            member.sequence.in_step = member.sequence.computing = True
        self._worker.submit(
            lambda: compute.run(step, banned, self._model, self._memory),
            lambda result: self._computed(step, started, result),
            lambda error: self._broken(step, error),
        )

    def _computed(self, step: Batch, started: float, result: compute.StepResult) -> None:
        self._owner.settled(step)
        try:
            if self._pacer is not None:
                seconds = self._estimates.profile_seconds(step)
                due = self._pacer.end(started, result.seconds, seconds)
                wait = max(0.0, due - self._now())
                self._loop.call_later(wait, self._deliver, step, started, result)
                return
        except Exception as error:
            log.exception("a step could not be paced")
            self._broken(step, error)
            return
        self._apply(step, started, result)

    def _deliver(self, step: Batch, started: float, result: compute.StepResult) -> None:
        if self._pacer is not None:
            self._metrics.paced_late.inc(self._pacer.delivered(self._now()))
            self._metrics.paced_valid.set(self._pacer.valid)
        self._apply(step, started, result)

    def _apply(self, step: Batch, started: float, result: compute.StepResult) -> None:
        self._over(step)
        seconds = self._now() - started
        try:
            self._estimates.step_ended(step, seconds)
            self._count(step, seconds)
        except Exception:
            log.exception("a step was not counted")
        self._owner.done(step, result)
        self.pump()

    def _broken(self, step: Batch, error: BaseException) -> None:
        self._owner.settled(step)
        self._over(step)
        self._owner.failed(step, error)
        self.pump()

    def _over(self, step: Batch) -> None:
        self._running = None
        for member in step.members:
            member.sequence.in_step = False

    def _count(self, step: Batch, seconds: float) -> None:
        if step.chunks:
            self._metrics.prefill_batches.inc()
            self._metrics.prefill_seconds.inc(seconds)
            return
        self._metrics.decode_steps.inc()
        self._metrics.decode_seconds.inc(seconds)
        self._metrics.decode_requests.inc(step.decodes)
        self._metrics.decode_context.inc(step.context)
