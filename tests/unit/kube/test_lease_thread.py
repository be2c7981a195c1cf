"""The Lease outlives a busy event loop, and not a hung one. Real threads, no waiting by guess:
the main loop stands still until what it waits for has happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from pdserve.dst.api_server import FakeApi
from pdserve.kube.client import KubeClient
from pdserve.kube.lease import LeadershipLostError, LeaseElector, LeaseTimes
from pdserve.kube.lease_thread import LeaseThread, Pulse
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import LEASES, Object, ObjectKey

LIMIT = 60.0
"""Seconds. Nothing here takes one; machines may be busy."""


class Site:
    """An API server that only the Lease's thread talks to, and the candidate of this process."""

    def __init__(self, times: LeaseTimes, silence: float = 1000.0) -> None:
        self.api = FakeApi()
        self.times = times
        self.aborted = False
        self.thread = LeaseThread(self.connect, self.make, silence=silence, abort=self.abort)

    async def connect(self) -> KubeClient:
        return self.api.client()

    def make(self, client: KubeClient, alive: Callable[[], bool]) -> LeaseElector:
        return LeaseElector(client, "default", "boss", "me", times=self.times, alive=alive)

    def abort(self) -> None:
        self.aborted = True

    def lease(self) -> Object:
        return self.api.store(LEASES).objects.get(ObjectKey("default", "boss"), {})

    def renewed(self) -> str:
        return str(self.lease().get("spec", {}).get("renewTime", ""))

    def holder(self) -> str:
        return str(self.lease().get("spec", {}).get("holderIdentity", ""))


def stand_still(until: Callable[[], bool]) -> None:
    """Hold the event loop until then."""
    deadline = time.monotonic() + LIMIT
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.005)


PATIENT = LeaseTimes(duration=3 * LIMIT, renew_deadline=2 * LIMIT, retry=0.01)
HASTY = LeaseTimes(duration=0.4, renew_deadline=0.2, retry=0.01)


async def test_the_lease_is_renewed_while_the_main_loop_is_held() -> None:
    site = Site(PATIENT)
    loops = []

    async def work() -> None:
        loops.append(asyncio.get_running_loop())
        for _ in range(5):
            before = site.renewed()
            stand_still(lambda before=before: site.renewed() != before)  # type: ignore[misc]  # a default argument

    await site.thread.run(work)
    assert loops == [asyncio.get_running_loop()], "the work runs here"
    assert site.holder() == "", "and the Lease is free after it"


async def test_a_main_loop_that_hangs_loses_the_lease_and_the_process_ends() -> None:
    site = Site(HASTY, silence=0.2)
    led = []

    async def work() -> None:
        led.append(True)
        stand_still(lambda: site.aborted)
        # The process goes on only because this test lets it.

    with pytest.raises(LeadershipLostError, match="work went on"):
        await site.thread.run(work)
    assert led == [True]


async def test_cancellation_ends_the_work_and_then_frees_the_lease() -> None:
    site = Site(PATIENT)
    started = asyncio.Event()
    held: list[str] = []

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            held.append(site.holder())

    task = asyncio.create_task(site.thread.run(work))
    async with asyncio.timeout(LIMIT):
        await started.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert task.cancelled()
    assert held and held[0].startswith("me_"), "it was ours until the work had ended"
    assert site.holder() == ""


async def test_what_the_work_raises_is_raised() -> None:
    site = Site(PATIENT)

    async def work() -> None:
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        await site.thread.run(work)


async def test_work_that_ends_when_the_lease_is_lost_ends_nothing_else() -> None:
    """The Lease is taken by force: the work is cancelled, and the candidate stands by."""
    site = Site(LeaseTimes(duration=3 * LIMIT, renew_deadline=2 * LIMIT, retry=0.01))
    ended = asyncio.Event()

    async def work() -> None:
        lease = site.lease()
        taken = {**lease, "spec": {**lease["spec"], "holderIdentity": "another"}}
        taken["metadata"] = {**lease["metadata"]}
        taken["metadata"].pop("resourceVersion")
        site.api.handle(KubeRequest("update", LEASES, "default", "boss", body=taken))
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(site.thread.run(work))
    async with asyncio.timeout(LIMIT):
        await ended.wait()
    assert not task.done()
    assert site.holder() == "another"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_a_pulse_is_alive_for_as_long_as_was_asked() -> None:
    at = [100.0]
    pulse = Pulse(30.0, lambda: at[0])
    assert pulse.alive()
    at[0] += 29.9
    assert pulse.alive()
    at[0] += 0.2
    assert not pulse.alive()
