"""Holds a Lease from a thread of its own, so that a busy event loop does not lose it.

A sweep over everything can hold the main event loop for longer than the Lease's renew deadline;
the thread renews meanwhile. A loop that hangs must not keep the Lease, though: once the main loop
has not run for `silence` seconds the thread stops renewing, and another process leads after the
Lease's duration. A process that was stopped (SIGSTOP, a frozen machine) renews nothing either.

    main loop:    beats every second; runs the work
    Lease thread: its own loop, its own connection; the `LeaseElector`; starts and cancels the work

Work that cannot be ended in time ends the process: the main loop may be what hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

from pdserve.kube.client import KubeClient
from pdserve.kube.lease import LeadershipLostError, LeaseElector

logger = logging.getLogger(__name__)

SILENCE: Final = 30.0
"""Seconds. With the Lease's 15 s and a standby's 2 s a hung leader is replaced within 47 s."""
BEAT: Final = 1.0

Work = Callable[[], Awaitable[None]]
MakeElector = Callable[[KubeClient, Callable[[], bool]], LeaseElector]
"""`make(client, alive)`."""


class Pulse:
    """When an event loop last ran. Written by that loop, read by any thread."""

    def __init__(self, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`silence`: seconds after which the loop counts as hung."""
        self._silence = silence
        self._clock = clock
        self._last = clock()

    async def beat(self) -> None:
        """Note every `BEAT` seconds that the loop runs, until cancelled."""
        while True:
            self._last = self._clock()
            await asyncio.sleep(min(BEAT, self._silence / 4))

    def alive(self) -> bool:
        """Whether the loop ran within the last `silence` seconds."""
        return self._clock() - self._last < self._silence


def end_process() -> None:
    """End this process at once, without its event loop."""
    os._exit(1)


class LeaseThread:
    """Runs a `LeaseElector` in a thread and its work in the caller's event loop."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[KubeClient]],
        make: MakeElector,
        *,
        silence: float = SILENCE,
        abort: Callable[[], None] = end_process,
    ) -> None:
        """Make a candidate; nothing happens until `run`.

        Args:
            connect: opens the thread's own client; called inside the thread.
            make: makes the elector.
            silence: seconds without the main loop after which the Lease is let go.
            abort: called in the thread when work went on after the Lease was lost.
        """
        self._connect = connect
        self._make = make
        self._pulse = Pulse(silence)
        self._abort = abort

    async def run(self, work: Work) -> None:
        """As `LeaseElector.run`; `work` runs in this event loop.

        Returns when `work` returns, raises what it or the thread raises. On cancellation the work
        is ended and the Lease is freed first.
        """
        main = asyncio.get_running_loop()
        ended: asyncio.Future[None] = main.create_future()
        thread = _Thread(self, work, main, ended)
        beat = asyncio.create_task(self._pulse.beat())
        thread.start()
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            thread.cancel()
            await asyncio.wait((ended,))
            raise
        finally:
            beat.cancel()

    async def _elect(self, work: Work) -> None:
        client = await self._connect()
        try:
            await self._make(client, self._pulse.alive).run(work)
        except LeadershipLostError as error:
            logger.critical("%s; this process ends", error)
            self._abort()
            raise
        finally:
            await client.close()


class _Thread(threading.Thread):
    """One life of the thread: from `start` to the end of the election."""

    def __init__(
        self,
        owner: LeaseThread,
        work: Work,
        main: asyncio.AbstractEventLoop,
        ended: asyncio.Future[None],
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self._owner = owner
        self._work = work
        self._main = main
        self._ended = ended
        self._lock = threading.Lock()
        self._cancelled = False
        self._cancel: Callable[[], object] | None = None

    def run(self) -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(self._life())
        except BaseException as error:
            failure = error
        self._tell(self._ended, failure)

    def cancel(self) -> None:
        """End the election from another thread."""
        with self._lock:
            self._cancelled = True
            if self._cancel is not None:
                self._cancel()

    async def _life(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(self._owner._elect(self._remote))
        with self._lock:
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            if self._cancelled:
                task.cancel()
        try:
            await task
        finally:
            with self._lock:
                self._cancel = None

    async def _remote(self) -> None:
        """The work as the elector sees it: ends when the task in the main loop has ended."""
        here = asyncio.get_running_loop()
        ended: asyncio.Future[None] = here.create_future()
        tasks: list[asyncio.Future[None]] = []

        def start() -> None:
            task = asyncio.ensure_future(self._work(), loop=self._main)
            tasks.append(task)
            task.add_done_callback(done)

        def done(task: asyncio.Future[None]) -> None:
            failure = asyncio.CancelledError() if task.cancelled() else task.exception()
            here.call_soon_threadsafe(_settle, ended, failure)

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self._main.call_soon_threadsafe(start)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not ended.done():
                self._main.call_soon_threadsafe(cancel)
                await ended
            raise

    def _tell(self, future: asyncio.Future[None], failure: BaseException | None) -> None:
        if not self._main.is_closed():
            self._main.call_soon_threadsafe(_settle, future, failure)


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    elif isinstance(failure, asyncio.CancelledError):
        future.cancel()
    else:
        future.set_exception(failure)
