"""Processor time of the operator's steps, where its own code runs in the simulated cluster.

What is measured is processor time per step of the event loop, which a busy neighbour does not
change. Steps of the simulation are left out by name, and in the operator's steps what the simulated
API server does. There is no garbage collection meanwhile: it
would go through the simulated cluster's objects, several times as many as the operator has.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pdserve.dst.api_server import FakeApi
from pdserve.dst.machinery import Machinery
from pdserve.dst.moments import stamp
from pdserve.dst.world import World
from pdserve.kube.client import KubeClient
from pdserve.kube.lease import LeaseElector
from pdserve.kube.lease_thread import SILENCE, LeaseThread
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES, Object


class Holds:
    """Processor time of every step of this thread's event loop, by what ran."""

    def __init__(self, *others: Callable[..., Any]) -> None:
        """`others`: coroutine functions of the bench, whose steps do not count."""
        self._left_out = {task.__qualname__ for task in (Machinery.run, *others)}
        self.longest: dict[str, float] = {}
        self.by: Counter[str] = Counter()
        """Seconds by what ran."""
        self.total = 0.0
        self.steps = 0
        self.elsewhere = 0.0
        """Seconds of the simulated API server since the bench began."""

    def clear(self) -> None:
        """Begin a phase."""
        self.longest.clear()
        self.by.clear()
        self.total, self.steps = 0.0, 0

    def note(self, what: str, seconds: float) -> None:
        """One step."""
        if what not in self._left_out:
            self.longest[what] = max(seconds, self.longest.get(what, 0.0))
            self.by[what] += seconds
            self.total += seconds
            self.steps += 1

    def worst(self) -> tuple[float, str]:
        """Milliseconds of the longest step, and what it was."""
        what = max(self.longest, key=lambda name: self.longest[name], default="nothing")
        return 1e3 * self.longest.get(what, 0.0), what


@contextmanager
def measured(holds: Holds) -> Iterator[None]:
    """Note every step of event loops inside."""
    run: Callable[[asyncio.Handle], None] = asyncio.Handle._run
    answer = FakeApi.handle

    def timed(handle: asyncio.Handle) -> None:
        what, began, elsewhere = _name(handle), time.thread_time(), holds.elsewhere
        run(handle)
        holds.note(what, time.thread_time() - began - (holds.elsewhere - elsewhere))

    def answered(api: FakeApi, request: KubeRequest) -> Object:
        began = time.thread_time()
        try:
            return answer(api, request)
        finally:
            holds.elsewhere += time.thread_time() - began

    asyncio.Handle._run = timed  # type: ignore[method-assign]  # the one place that runs steps
    FakeApi.handle = answered  # type: ignore[method-assign]  # all requests come here
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        FakeApi.handle = answer  # type: ignore[method-assign]  # as before
        asyncio.Handle._run = run  # type: ignore[method-assign]  # as before


def _name(handle: Any) -> str:
    callback = handle._callback
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return str(getattr(task.get_coro(), "__qualname__", "a task"))
    return str(getattr(callback, "__qualname__", type(callback).__name__))


def is_ready(obj: Object) -> bool:
    """Whether its condition Ready is True."""
    conditions = obj.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def set_ready(world: World, node: str, status: str) -> None:
    """Let a node say that it is ready ("True") or not heard of ("Unknown")."""
    condition = {"type": "Ready", "status": status, "lastTransitionTime": stamp()}
    body = {"status": {"conditions": [condition]}}
    world.patch(NODES, "", node, body, subresource="status")


class Leadership:
    """A Lease of its own API server, and how often it was lost."""

    def __init__(self, silence: float = SILENCE) -> None:
        """`silence`: real seconds without a virtual one after which the loop counts as hung."""
        self.api = FakeApi()
        self.begun = 0
        self._silence = silence

    async def run(self, work: Callable[[], Any]) -> None:
        """Run `work` while leading."""

        async def connect() -> KubeClient:
            return self.api.client()

        def make(client: KubeClient, alive: Callable[[], bool]) -> LeaseElector:
            return LeaseElector(
                client, "default", "storm", "bench", alive=alive, on_started=self._started
            )

        await LeaseThread(connect, make, silence=self._silence).run(work)

    def _started(self) -> None:
        self.begun += 1

    @property
    def losses(self) -> int:
        """Times that the Lease was lost."""
        return self.begun - 1
