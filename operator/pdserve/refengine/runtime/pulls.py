"""Pulls the KV of decodes, beside the steps: one task for each sequence that waits for its KV."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from pdserve.refengine.kv.kv_transport import CorruptKvError, KvSource, TransportError, WantedKv
from pdserve.refengine.kv.payload import landing
from pdserve.refengine.kv.pool import blocks_for
from pdserve.refengine.metrics import EngineMetrics
from pdserve.refengine.model.tensors import Array
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.pacing import Pacer
from pdserve.refengine.runtime.request import RemoteKv
from pdserve.refengine.runtime.sequence import Sequence
from pdserve.wire import calls


@dataclass(frozen=True, slots=True)
class PullFailure:
    """Why there is no KV: a reason of `wire.calls`, and what to read."""

    reason: str
    message: str


Over = Callable[[Sequence, RemoteKv, PullFailure | None], None]


class Pulls:
    """Running pulls, counted and paced."""

    def __init__(
        self,
        memory: Array,
        estimates: Estimates,
        metrics: EngineMetrics,
        pacer: Pacer | None,
        over: Over,
    ) -> None:
        """`memory`: the KV pool. `over` is called once for each pull: None, or why it failed."""
        self._memory, self._estimates, self._metrics = memory, estimates, metrics
        self._pacer, self._over = pacer, over
        self._tasks: dict[Sequence, asyncio.Task[None]] = {}
        self.source: KvSource | None = None
        """Where KV comes from; None on instances that pull none."""
        self.received: Callable[[list[int]], None] = lambda _blocks: None
        """Called with the blocks that KV was written into."""

    def start(self, sequence: Sequence, remote: RemoteKv) -> None:
        """Pull into the sequence's blocks."""
        task = asyncio.get_running_loop().create_task(self._fetch(sequence, remote))
        self._tasks[sequence] = task
        task.add_done_callback(lambda done: self._ended(sequence, remote, done))

    def cancel(self, sequence: Sequence) -> bool:
        """End its pull, which reports when nothing is written any more; False without one."""
        task = self._tasks.get(sequence)
        if task is None:
            return False
        task.cancel()
        return True

    def stop(self) -> None:
        """End all."""
        for task in self._tasks.values():
            task.cancel()

    def _ended(self, sequence: Sequence, remote: RemoteKv, task: asyncio.Task[None]) -> None:
        del self._tasks[sequence]
        failure: PullFailure | None
        if task.cancelled():
            failure = PullFailure(calls.REJECT_KV_FAILED, "instance stops")
        elif (error := task.exception()) is None:
            failure = None
        elif isinstance(error, CorruptKvError):
            failure = PullFailure(calls.REJECT_KV_CORRUPT, str(error))
        else:
            failure = PullFailure(calls.REJECT_KV_FAILED, str(error))
        self._over(sequence, remote, failure)

    async def _fetch(self, sequence: Sequence, remote: RemoteKv) -> None:
        if self.source is None:
            raise TransportError("this instance pulls no KV")
        tokens, started = remote.tokens, time.monotonic()
        wanted = WantedKv(remote.request, tokens, remote.generation)
        buffers = landing(self._memory, sequence.blocks, tokens)
        size = await self.source.pull(remote.engine, wanted, buffers)
        self.received(list(sequence.blocks[: blocks_for(tokens)]))
        if self._pacer is not None:
            due = self._pacer.transfer_end(started, tokens)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        seconds = time.monotonic() - started
        self._estimates.transfer.add(seconds)
        self._metrics.transfer_seconds.inc(seconds)
        self._metrics.transfers.inc()
        self._metrics.transfer_bytes.inc(size)
