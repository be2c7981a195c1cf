"""Leader election against the in-memory API model, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from pdserve.dst.api_net import FakeTransport, Faults, SimulatedCrash
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import run_virtual, virtual_time
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.lease import (
    LONGEST_TERM,
    MAX_TRANSITIONS,
    LeadershipLostError,
    LeaseElector,
    LeaseTimes,
)
from pdserve.kube.ratelimit import TokenBucket
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
async def test_cut_off_from_the_server_the_leader_stops_before_another_starts() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    await until(lambda: one.working)
    two = Candidate(api, "two")
    with ending(one, two):
        await asyncio.sleep(20)
        one.faults.down = True
        took = await until(lambda: not one.working)
        assert took <= 10.5
        assert not one.elector.leading
        assert not two.working
        await until(lambda: two.working)
        assert two.spans[0][0] - one.spans[0][1] > 3, "with some distance"
        one.faults.down = False
        await asyncio.sleep(60)
        assert two.working
        assert not one.working, "it stands by again"


@virtual_time
async def test_a_short_outage_does_not_end_leadership() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    with ending(one):
        await until(lambda: one.working)
        for _ in range(20):
            one.faults.down = True
            await asyncio.sleep(5)
            one.faults.down = False
            await asyncio.sleep(5)
        assert len(one.spans) == 1
        assert one.working


@virtual_time
async def test_a_leader_that_is_not_alive_renews_nothing_and_is_replaced() -> None:
    api = FakeApi()
    first = Candidate(api, "first")
    await asyncio.sleep(1)
    second = Candidate(api, "second")
    await asyncio.sleep(20)
    first.alive = False
    hung = now()
    await asyncio.sleep(20)
    assert second.working
    assert first.spans[-1][1] - hung <= 10
    assert second.spans[-1][0] - hung <= 15 + 2.4
    second.alive = False
    await asyncio.sleep(60)
    assert not first.working, "nor does it take the Lease"
    assert not second.working
    first.alive = True
    await asyncio.sleep(30)
    assert first.working
    await first.stop()
    await second.stop()


@virtual_time
async def test_a_leader_that_comes_alive_in_time_goes_on() -> None:
    api = FakeApi()
    only = Candidate(api, "only")
    await asyncio.sleep(20)
    only.alive = False
    await asyncio.sleep(7)
    only.alive = True
    await asyncio.sleep(60)
    assert only.working
    assert len(only.spans) == 1
    await only.stop()


@virtual_time
async def test_a_lease_taken_by_force_is_noticed_and_not_released() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    with ending(one):
        await until(lambda: one.working)
        thief = {"op": "replace", "path": "/spec/holderIdentity", "value": "thief"}
        await api.client().patch_json(LEASES, "boss", [thief], namespace="default")
        assert await until(lambda: not one.working) < 3
        assert (await lease(api))["spec"]["holderIdentity"] == "thief"
        assert await until(lambda: one.working) > 14, "the thief's time is respected"


@virtual_time
async def test_a_deleted_lease_ends_leadership_and_is_made_anew() -> None:
    api = FakeApi()
    one = Candidate(api, "one")
    with ending(one):
        await until(lambda: one.working)
        await api.client().delete(LEASES, "boss", namespace="default")
        await until(lambda: len(one.spans) == 2)
        assert one.working
        assert len(one.spans[0]) == 2, "the first term ended before the second began"


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        (None, 5), ({}, 5), ({"holderIdentity": None, "leaseTransitions": None}, 5),
        ({"holderIdentity": "", "leaseTransitions": MAX_TRANSITIONS}, 5),
        ({"holderIdentity": "gone", "leaseDurationSeconds": 2**31 - 1}, LONGEST_TERM + 5),
        ({"holderIdentity": "gone", "renewTime": "9999-12-31T23:59:59.999999Z"}, 20),
        ({"holderIdentity": "gone", "acquireTime": "0001-01-01T00:00:00.000000Z"}, 20),
    ],
)  # fmt: skip
@virtual_time
async def test_no_stored_lease_keeps_every_operator_from_leading(
    spec: Object | None, seconds: float
) -> None:
    api = FakeApi()
    body: Object = {"metadata": {"name": "boss", "namespace": "default"}}
    await api.client().create(LEASES, body if spec is None else {**body, "spec": spec})
    one = Candidate(api, "one")
    with ending(one):
        assert await until(lambda: one.working, seconds) <= seconds
        assert (await lease(api))["spec"]["leaseTransitions"] <= MAX_TRANSITIONS


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


@pytest.mark.parametrize("seed", range(30))
def test_never_two_at_once_on_a_bad_network(seed: int) -> None:
    """Three candidates, lost answers, outages, kills: their spans of work never overlap."""

    async def scenario() -> None:
        rng = random.Random(seed)
        api = FakeApi()
        network: dict[str, Any] = {"refuse": 0.15, "lose_answer": 0.15}
        three = [Candidate(api, f"c{i}", seed * 10 + i, **network) for i in range(3)]
        with ending(*three):
            for _ in range(12):
                victim = rng.choice(three)
                victim.faults.down = True
                await asyncio.sleep(rng.uniform(0, 25))
                victim.faults.down = False
                await asyncio.sleep(rng.uniform(0, 10))
                assert sum(c.working for c in three) <= 1
            for candidate in three:
                candidate.faults.refuse = candidate.faults.lose_answer = 0
            await asyncio.sleep(40)
            assert sum(c.working for c in three) == 1
            spans = sorted(
                (span[0], span[1] if len(span) > 1 else now()) for c in three for span in c.spans
            )
            assert len(spans) > 1
            assert all(a[1] <= b[0] for a, b in pairwise(spans)), spans

    run_virtual(scenario())


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
