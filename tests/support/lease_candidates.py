"""Candidates for a Lease in the in-memory API model, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pdserve.dst.api_net import Faults
from pdserve.dst.api_server import FakeApi
from pdserve.exposition import Registry
from pdserve.kube.lease import (
    LeaseElector,
)
from pdserve.kube.resource import LEASES, Object


def now() -> float:
    return asyncio.get_running_loop().time()


class Candidate:
    """A process: its network, its elector, and when its work ran."""

    def __init__(
        self, api: FakeApi, name: str, seed: int = 0, *, incarnation: str = "", **faults: float
    ) -> None:
        self.faults = Faults(seed=seed, **faults)  # type: ignore[arg-type]
        self.alive = True
        self.registry = Registry()
        self.spans: list[list[float]] = []
        self.elector = LeaseElector(
            api.client(self.faults), "default", "boss", name, incarnation=incarnation,
            alive=lambda: self.alive, registry=self.registry, rng=random.Random(f"{name}{seed}"),
            on_started=lambda: self.spans.append([now()]),
            on_stopped=lambda: self.spans[-1].append(now()),
        )  # fmt: skip
        self.task = asyncio.create_task(self.elector.run(self.work))

    async def work(self) -> None:
        await asyncio.Event().wait()

    @property
    def working(self) -> bool:
        return bool(self.spans) and len(self.spans[-1]) == 1

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def kill(self) -> None:
        """No clean-up reaches the server any more."""
        self.faults.crashed = True


async def lease(api: FakeApi) -> Object:
    return await api.client().get(LEASES, "boss", "default")


async def until(condition: object, seconds: float = 60) -> float:
    """Virtual seconds until `condition()` holds."""
    assert callable(condition)
    start = now()
    while not condition():
        assert now() - start < seconds, "waited in vain"
        await asyncio.sleep(0.01)
    return now() - start


@contextmanager
def ending(*candidates: Candidate) -> Iterator[None]:
    try:
        yield
    finally:
        for candidate in candidates:
            candidate.kill()
            candidate.task.cancel()
