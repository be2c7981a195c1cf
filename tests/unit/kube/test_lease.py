"""Leader election in a simulated cluster: who leads, and how it hands over."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from tests.support.lease_candidates import Candidate, ending, lease, until

from pdserve.dst.api_net import FakeTransport, Faults, SimulatedCrash
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import run_virtual, virtual_time
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.lease import (
    LeadershipLostError,
    LeaseElector,
    LeaseTimes,
)
from pdserve.kube.ratelimit import TokenBucket
from pdserve.kube.resource import LEASES


@virtual_time
async def test_the_first_leads_and_keeps_on() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    await asyncio.sleep(1)
    two = Candidate(api, "two")
    with ending(one, two):
        await asyncio.sleep(600)
        assert one.working
        assert one.elector.leading
        assert not two.spans
        assert two.elector.holder == one.elector.identity
        assert len(one.spans) == 1
        assert one.registry.value("leader_election_master_status", "boss") == 1
        assert two.registry.value("leader_election_master_status", "boss") == 0
        spec = (await lease(api))["spec"]
        assert spec["holderIdentity"].startswith("one_")
        assert spec["leaseTransitions"] == 0
        assert spec["leaseDurationSeconds"] == 15
        assert spec["renewTime"] > spec["acquireTime"]


@virtual_time
async def test_a_clean_exit_hands_over_within_three_seconds() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    await until(lambda: one.working)
    two = Candidate(api, "two")
    with ending(one, two):
        await asyncio.sleep(33.3)
        await one.stop()
        assert not one.working
        assert await until(lambda: two.working) < 3
        assert (await lease(api))["spec"]["leaseTransitions"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_hands_over_within_twenty_seconds_and_not_too_soon(seed: int) -> None:
    async def scenario() -> None:
        api = FakeApi()
        one = Candidate(api, "one", seed)
        await until(lambda: one.working)
        two = Candidate(api, "two", seed + 100)
        with ending(one, two):
            await asyncio.sleep(30 + random.Random(seed).uniform(0, 3))
            one.kill()
            took = await until(lambda: two.working)
            assert 12 < took < 18

    run_virtual(scenario())


@virtual_time
async def test_restarted_in_place_it_goes_on_at_once_with_the_lease_it_held() -> None:
    """And a foreign pod of the same name, or another pod, still waits."""
    api = FakeApi()
    one = Candidate(api, "one", incarnation="uid-1")
    await until(lambda: one.working)
    one.kill()
    with ending(one):
        again = Candidate(api, "one", incarnation="uid-1")
        other = Candidate(api, "one", incarnation="uid-2")
        with ending(again, other):
            assert await until(lambda: again.working) < 1
            await asyncio.sleep(60)
            assert again.working
            assert not other.spans
            assert (await lease(api))["spec"]["leaseTransitions"] == 0


@virtual_time
async def test_work_that_returns_or_raises_frees_the_lease() -> None:
    api = FakeApi()

    async def done() -> None:
        await asyncio.sleep(5)

    async def failing() -> None:
        raise KeyError("a defect in the work")

    elector = LeaseElector(api.client(), "default", "boss", "one")
    await elector.run(done)
    assert (await lease(api))["spec"]["holderIdentity"] == ""
    with pytest.raises(KeyError, match="a defect"):
        await LeaseElector(api.client(), "default", "boss", "two").run(failing)
    assert (await lease(api))["spec"]["holderIdentity"] == ""


@virtual_time
async def test_work_that_does_not_stop_ends_the_process_and_keeps_the_lease() -> None:
    api = FakeApi()

    allowed_to_end = False

    async def stubborn() -> None:
        while not allowed_to_end:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    faults = Faults()
    elector = LeaseElector(api.client(faults), "default", "boss", "one")
    task = asyncio.create_task(elector.run(stubborn))
    await asyncio.sleep(10)
    faults.down = True
    with pytest.raises(LeadershipLostError, match="boss"):
        await task
    assert (await lease(api))["spec"]["holderIdentity"] == elector.identity
    allowed_to_end = True


@virtual_time
async def test_the_token_bucket_does_not_delay_renewals() -> None:
    api = FakeApi()
    slow = KubeClient(FakeTransport(api, Faults()), bucket=TokenBucket(0.01, 1))
    await slow.list(LEASES)
    elector = LeaseElector(slow, "default", "boss", "one")
    task = asyncio.create_task(elector.run(asyncio.Event().wait))  # type: ignore[arg-type]
    await asyncio.sleep(30)
    assert elector.leading
    task.cancel()


@pytest.mark.parametrize(
    "times",
    [
        {"duration": 10, "renew_deadline": 10},
        {"renew_deadline": 2},
        {"retry": 0},
        {"retry": 9, "jitter": 0.2},
    ],
)
def test_times_that_cannot_work(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="renew_deadline"):
        LeaseTimes(**times)


@virtual_time
async def test_an_empty_identity_is_refused() -> None:
    with pytest.raises(ValueError, match="identity"):
        LeaseElector(FakeApi().client(), "default", "boss", "")


@virtual_time
async def test_a_crash_in_the_model_reaches_the_caller() -> None:
    """The simulations rely on it: nothing in between may swallow a kill."""
    faults = Faults(crash_at=1)
    elector = LeaseElector(FakeApi().client(faults), "default", "boss", "one")
    with pytest.raises(SimulatedCrash):
        await elector.run(asyncio.Event().wait)  # type: ignore[arg-type]
    with pytest.raises(SimulatedCrash):
        await FakeApi().client(faults).get(LEASES, "boss", "default")
    with pytest.raises(KubeError):
        await FakeApi().client().get(LEASES, "boss", "default")
