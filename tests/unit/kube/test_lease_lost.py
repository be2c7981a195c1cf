"""A Lease that is lost, taken, unreadable or not to be renewed, in virtual time."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from tests.support.lease_candidates import Candidate, ending, lease, now, until

from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import run_virtual, virtual_time
from pdserve.kube.lease import (
    LONGEST_TERM,
    MAX_TRANSITIONS,
)
from pdserve.kube.resource import LEASES, Object


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
