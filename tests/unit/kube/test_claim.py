"""Claims against the in-memory API model, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.claim import REPORT_SECONDS, ClaimedError, ClaimTimes, Place, ScopeClaim
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NAMESPACES, Object, ObjectKey

TIMES = ClaimTimes()
NAME = ObjectKey("default", "claim")
ALL = Place(NAME.namespace, NAME.name, "all namespaces")
TEAM = "team"


def claim(api: FakeApi, holder: str, faults: Faults | None = None) -> ScopeClaim:
    return ScopeClaim(api.client(faults or Faults()), ALL, holder, narrower=True, times=TIMES)


def narrow(
    api: FakeApi, holder: str, namespace: str = TEAM, faults: Faults | None = None
) -> ScopeClaim:
    place = Place(namespace, NAME.name, f"namespace {namespace}")
    return ScopeClaim(api.client(faults or Faults()), place, holder, wider=ALL, times=TIMES)


def stored(api: FakeApi) -> Object:
    return api.store(CONFIGMAPS).objects[NAME]


def now() -> float:
    return asyncio.get_running_loop().time()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@virtual_time
async def test_the_second_waits_writes_nothing_and_says_whose_it_is() -> None:
    api = FakeApi()
    first, second = claim(api, "a/op"), claim(api, "b/op")
    await first.wait_free()
    await first.take()
    keeper = asyncio.create_task(first.keep())
    waiter = asyncio.create_task(second.wait_free())
    await asyncio.sleep(3600)
    assert not keeper.done()
    assert not waiter.done()
    assert "belong to operator 'a/op'" in second.waiting
    assert "all namespaces" in second.waiting
    assert first.waiting == ""
    assert stored(api)["data"]["holder"] == "a/op"
    with pytest.raises(ClaimedError, match="'a/op'"):
        await second.take()
    assert stored(api)["data"]["holder"] == "a/op"
    await end(keeper)
    await end(waiter)


@virtual_time
async def test_a_silent_holder_is_succeeded_after_the_duration_and_not_before() -> None:
    api = FakeApi()
    await claim(api, "a/op").take()
    second = claim(api, "b/op")
    began = now()
    await second.wait_free()
    assert TIMES.duration <= now() - began <= TIMES.duration + 2 * TIMES.look
    await second.take()
    assert stored(api)["data"]["holder"] == "b/op"
    # Who was silent finds it taken.
    with pytest.raises(ClaimedError, match="'b/op'"):
        await claim(api, "a/op").take()


@virtual_time
async def test_a_successor_of_the_same_holder_goes_on_at_once() -> None:
    """A Deployment rolls: no other gets in between."""
    api = FakeApi()
    before = claim(api, "a/op")
    await before.take()
    other = asyncio.create_task(claim(api, "b/op").wait_free())
    await asyncio.sleep(200)
    began = now()
    after = claim(api, "a/op")
    await after.wait_free()
    await after.take()
    assert now() == began
    keeper = asyncio.create_task(after.keep())
    await asyncio.sleep(3600)
    assert not other.done()
    await end(keeper)
    await end(other)


@virtual_time
async def test_of_two_that_take_at_once_one_wins() -> None:
    for existing in (False, True):
        api = FakeApi()
        if existing:
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": NAME.name, "namespace": NAME.namespace},
            }
            api.handle(KubeRequest("create", CONFIGMAPS, NAME.namespace, body=body))
        latency = (0.01, 0.02)
        rivals = [claim(api, f"{i}/op", Faults(seed=i, latency=latency)) for i in range(5)]
        found = await asyncio.gather(*(r.take() for r in rivals), return_exceptions=True)
        assert found.count(None) == 1
        assert sum(isinstance(answer, ClaimedError) for answer in found) == 4
        assert stored(api)["data"]["holder"] == f"{found.index(None)}/op"


@virtual_time
async def test_a_holder_that_cannot_renew_stops_before_others_may_start() -> None:
    api = FakeApi()
    faults = Faults()
    first = claim(api, "a/op", faults)
    await first.take()
    keeper = asyncio.create_task(first.keep())
    await asyncio.sleep(100)
    faults.down = True
    began = now()
    with pytest.raises(ClaimedError, match="not be renewed"):
        await keeper
    assert now() - began < TIMES.duration - TIMES.renew


@virtual_time
async def test_a_short_outage_and_a_deleted_claim_end_nothing() -> None:
    api = FakeApi()
    faults = Faults()
    first = claim(api, "a/op", faults)
    await first.take()
    keeper = asyncio.create_task(first.keep())
    await asyncio.sleep(100)
    faults.down = True
    await asyncio.sleep(100)
    faults.down = False
    await asyncio.sleep(100)
    api.handle(KubeRequest("delete", CONFIGMAPS, *NAME))
    await asyncio.sleep(100)
    assert not keeper.done()
    assert stored(api)["data"]["holder"] == "a/op"
    await end(keeper)


@virtual_time
async def test_an_unreadable_claim_is_waited_for() -> None:
    api = FakeApi()
    faults = Faults()
    faults.down = True
    first = claim(api, "a/op", faults)
    waiter = asyncio.create_task(first.wait_free())
    await asyncio.sleep(60)
    assert "cannot read who acts on all namespaces" in first.waiting
    faults.down = False
    await waiter
    assert first.waiting == ""


# --- a scope that includes another ---------------------------------------------------------------


def two_namespaces() -> FakeApi:
    api = FakeApi()
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}
    api.handle(KubeRequest("create", NAMESPACES, body=team))
    return api


@virtual_time
async def test_one_of_a_namespace_waits_while_one_of_all_namespaces_acts() -> None:
    api = two_namespaces()
    wide, late = claim(api, "a/op"), narrow(api, "b/op")
    await wide.take()
    keeper = asyncio.create_task(wide.keep())
    waiter = asyncio.create_task(late.wait_free())
    await asyncio.sleep(3600)
    assert not waiter.done()
    assert "the objects of all namespaces belong to operator 'a/op'" in late.waiting
    with pytest.raises(ClaimedError, match="'a/op'"):
        await late.take()
    assert list(api.store(CONFIGMAPS).objects) == [NAME]
    await end(keeper)
    await asyncio.sleep(TIMES.duration + 2 * TIMES.look)
    assert waiter.done()
    await late.take()


@virtual_time
async def test_one_of_all_namespaces_leaves_out_what_others_hold_until_they_are_gone() -> None:
    api = two_namespaces()
    first = narrow(api, "a/op")
    await first.take()
    keeper = asyncio.create_task(first.keep())
    left: list[dict[str, str]] = []
    wide = ScopeClaim(
        api.client(),
        ALL,
        "b/op",
        narrower=True,
        times=TIMES,
        on_left=lambda it: left.append({**it}),
    )
    await wide.wait_free()
    await wide.take()
    assert left == [{TEAM: "a/op"}]
    wide_keeper = asyncio.create_task(wide.keep())
    await asyncio.sleep(3600)
    assert not keeper.done()
    assert left[-1] == {TEAM: "a/op"}
    # A successor of the same holder goes on: the wider claim came later.
    await end(keeper)
    after = narrow(api, "a/op")
    await after.wait_free()
    await after.take()
    assert left[-1] == {TEAM: "a/op"}
    # It is gone for good: its namespace is taken over, and it is not let back in.
    await asyncio.sleep(TIMES.duration + 2 * TIMES.renew + 1)
    assert left[-1] == {}
    with pytest.raises(ClaimedError, match="'b/op'"):
        await narrow(api, "a/op").take()
    with pytest.raises(ClaimedError, match="'b/op'"):
        await after.keep()
    await end(wide_keeper)


class Refusing(FakeTransport):
    """A policy of namespace TEAM forbids to delete claims there."""

    async def send(self, request: KubeRequest) -> Object:
        if request.verb == "delete" and request.namespace == TEAM:
            raise KubeError(403, "Forbidden", "a policy keeps this ConfigMap")
        return await super().send(request)


@virtual_time
async def test_a_void_claim_that_may_not_be_deleted_costs_its_namespace_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = two_namespaces()
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}
    api.handle(KubeRequest("create", NAMESPACES, body=other))
    await narrow(api, "a/op").take()
    await narrow(api, "c/op", "other").take()
    left: list[dict[str, str]] = []
    wide = ScopeClaim(
        KubeClient(Refusing(api, Faults())), ALL, "b/op", narrower=True, times=TIMES,
        on_left=lambda it: left.append({**it}),
    )  # fmt: skip
    await wide.take()
    keeper = asyncio.create_task(wide.keep())
    await asyncio.sleep(3600)
    assert not keeper.done(), "its own claim is renewed"
    assert left[0] == {TEAM: "a/op", "other": "c/op"}
    assert left[-1] == {TEAM: "a/op"}, "who claimed it could come back and act"
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "1 namespaces" in said[0] and "a policy keeps this ConfigMap" in said[0]
    assert len(said) <= 3600 / REPORT_SECONDS
    await end(keeper)


@virtual_time
async def test_a_void_claim_that_a_finalizer_keeps_is_void_once_and_for_all() -> None:
    api = two_namespaces()
    before = narrow(api, "a/op")
    await before.take()
    finalizers = {"metadata": {"finalizers": ["example.com/keep"]}}
    api.handle(KubeRequest("patch", CONFIGMAPS, TEAM, NAME.name, body=finalizers, patch="merge"))
    left: list[dict[str, str]] = []
    wide = ScopeClaim(
        api.client(), ALL, "b/op", narrower=True, times=TIMES,
        on_left=lambda it: left.append({**it}),
    )  # fmt: skip
    await wide.take()
    keeper = asyncio.create_task(wide.keep())
    await asyncio.sleep(TIMES.duration + 2 * TIMES.renew)
    assert left[-1] == {}
    since, version = len(left), api.version
    await asyncio.sleep(3600)
    assert left[since:] and not any(left[since:])
    assert api.version - version <= len(left[since:]) + 1, "nothing but renewals is written"
    # Its holder of old does not take itself for the holder still.
    with pytest.raises(ClaimedError, match="'b/op'"):
        await before.keep()
    with pytest.raises(ClaimedError, match="'b/op'"):
        await narrow(api, "a/op").take()
    await end(keeper)


@virtual_time
async def test_of_two_that_start_at_once_never_both_act_on_a_namespace() -> None:
    outcomes: set[tuple[bool, bool]] = set()
    for seed in range(40):
        api = two_namespaces()
        latency = (0.001, 0.05)
        left: dict[str, str] = {}
        wide = ScopeClaim(
            api.client(Faults(seed=seed, latency=latency)), ALL, "a/op", narrower=True,
            times=TIMES, on_left=left.update,
        )  # fmt: skip
        other = narrow(api, "b/op", faults=Faults(seed=1000 + seed, latency=latency))
        found = await asyncio.gather(wide.take(), other.take(), return_exceptions=True)
        assert found[0] is None
        assert found[1] is None or isinstance(found[1], ClaimedError)
        outcomes.add((found[1] is None, bool(left)))
        stands = ObjectKey(TEAM, NAME.name) in api.store(CONFIGMAPS).objects
        assert stands == (found[1] is None)
    # Of the one that acts there the other knows; at times both see each other and both let go.
    assert outcomes == {(True, True), (False, False), (False, True)}


@virtual_time
async def test_operators_of_two_namespaces_hold_their_claims_side_by_side() -> None:
    """Also where one of them looks after the namespace in which the wider claim would stand."""
    api = two_namespaces()
    here = Place(NAME.namespace, NAME.name, f"namespace {NAME.namespace}")
    one = ScopeClaim(api.client(), here, "a/op", times=TIMES)
    two = narrow(api, "b/op")
    await one.take()
    await two.take()
    keepers = [asyncio.create_task(c.keep()) for c in (one, two)]
    await asyncio.sleep(3600)
    assert not any(k.done() for k in keepers)
    for keeper in keepers:
        await end(keeper)
