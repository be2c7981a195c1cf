"""What the client adds to a transport: waiting, paging, guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pdserve.dst.api_net import Faults, SimulatedCrash
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import NotOursError, create_or_apply, owner_reference
from pdserve.kube.ratelimit import TokenBucket
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NODES, PODS, Object, Resource


def now() -> float:
    return asyncio.get_running_loop().time()


class Scripted:
    """A transport that answers from a list: objects as they are, errors raised."""

    def __init__(self, *answers: Object | KubeError) -> None:
        self.answers = list(answers)
        self.asked: list[KubeRequest] = []

    async def send(self, request: KubeRequest) -> Object:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, KubeError):
            raise answer
        return answer

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        self.asked.append(request)
        for answer in self.answers:
            assert isinstance(answer, dict)
            yield answer

    async def close(self) -> None:
        return


def page(*names: str, more: str = "") -> Object:
    meta = {"resourceVersion": "9", **({"continue": more} if more else {})}
    return {"metadata": meta, "items": [{"metadata": {"name": name}} for name in names]}


TOO_MANY = KubeError(429, "TooManyRequests", "", retry_after=2.0)
EXPIRED = KubeError(410, "Expired", "")


@virtual_time
async def test_the_bucket_lets_a_burst_through_then_the_rate() -> None:
    transport = Scripted(*({"metadata": {}} for _ in range(30)))
    client = KubeClient(transport, bucket=TokenBucket(10, 5))
    start = now()
    await asyncio.gather(*(client.get(NODES, "n") for _ in range(25)))
    assert now() - start == pytest.approx(2.0)
    await asyncio.sleep(60)
    start = now()
    await asyncio.gather(*(client.get(NODES, "n") for _ in range(5)))
    assert now() == start


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_that_would_never_give(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate, burst)


@virtual_time
async def test_a_429_is_waited_out_a_few_times() -> None:
    transport = Scripted(TOO_MANY, TOO_MANY, {"metadata": {"name": "a"}})
    start = now()
    await KubeClient(transport).get(NODES, "a")
    assert now() - start == pytest.approx(4)
    transport = Scripted(*[TOO_MANY] * 4)
    with pytest.raises(KubeError, match="429"):
        await KubeClient(transport).get(NODES, "a")
    assert transport.answers == []


@virtual_time
async def test_other_errors_and_a_429_without_a_time_are_the_callers() -> None:
    for error in (KubeError(500, "x", ""), KubeError(429, "x", ""), KubeError(0, "x", "")):
        transport = Scripted(error)
        with pytest.raises(KubeError):
            await KubeClient(transport).get(NODES, "a")
        assert len(transport.asked) == 1


@virtual_time
async def test_a_list_that_expires_midway_is_taken_whole() -> None:
    transport = Scripted(page("a", more="t"), EXPIRED, page("a", "b", "c"))
    listing = await KubeClient(transport).list(NODES, page_size=1)
    assert [item["metadata"]["name"] for item in listing.items] == ["a", "b", "c"]
    assert [request.query for request in transport.asked] == [
        {"limit": "1"},
        {"limit": "1", "continue": "t"},
        {},
    ]


@virtual_time
async def test_a_list_that_expires_even_whole_is_an_error() -> None:
    with pytest.raises(KubeError) as caught:
        await KubeClient(Scripted(EXPIRED, EXPIRED)).list(NODES)
    assert caught.value.is_gone


@virtual_time
async def test_list_items_know_their_kind_and_pass_the_transform() -> None:
    listing = await KubeClient(Scripted(page("a", "b"))).list(
        NODES, transform=lambda o: o["kind"] if o["metadata"]["name"] == "b" else None
    )
    assert listing.items == ("Node",)


@virtual_time
async def test_a_watch_error_event_is_raised() -> None:
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    client = KubeClient(Scripted({"type": "ERROR", "object": gone}))
    with pytest.raises(KubeError) as caught:
        async for _ in client.watch(NODES, resource_version="1"):
            pass
    assert caught.value.is_gone


def test_paths() -> None:
    deployments = Resource("apps", "v1", "deployments", "Deployment")
    assert PODS.path() == "/api/v1/pods"
    assert PODS.path("ns", "a", "status") == "/api/v1/namespaces/ns/pods/a/status"
    assert deployments.path("ns") == "/apis/apps/v1/namespaces/ns/deployments"
    assert NODES.path(None, "a/../b") == "/api/v1/nodes/a%2F..%2Fb"
    with pytest.raises(ValueError, match="namespace is required"):
        PODS.path(None, "a")
    with pytest.raises(ValueError, match="cluster-scoped"):
        NODES.path("ns", "a")


def test_error_kinds_are_distinguished() -> None:
    taken = KubeError.from_status(409, {"reason": "AlreadyExists"})
    stale = KubeError.from_status(409, {"reason": "Conflict"})
    assert (taken.is_already_exists, taken.is_conflict) == (True, False)
    assert (stale.is_already_exists, stale.is_conflict) == (False, True)
    busy = KubeError.from_status(429, {"code": 429, "details": {"retryAfterSeconds": 3}})
    assert busy.retry_after == 3
    assert KubeError.from_status(410, {"reason": "Expired"}).is_gone
    assert KubeError(0, "Unreachable", "").is_unreachable
    assert KubeError(403, "Forbidden", "").is_forbidden
    assert KubeError(422, "Invalid", "").is_invalid


# --- ownership ---------------------------------------------------------------------------------


def config(name: str, owner: Object | None, **data: str) -> Object:
    meta: Object = {"name": name, "namespace": "default"}
    if owner is not None:
        meta["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


@pytest.mark.invariant(9)
@virtual_time
async def test_a_foreign_object_is_never_taken_over() -> None:
    api = FakeApi()
    client = api.client()
    boss = await client.create(CONFIGMAPS, config("boss", None))
    other = await client.create(CONFIGMAPS, config("other", None))
    cases = {"a user's": config("made", None, x="theirs"), "another's": config("made", other)}
    for whose, existing in cases.items():
        theirs = await client.create(CONFIGMAPS, existing)
        for known in (None, theirs):
            with pytest.raises(NotOursError, match="will not be taken over") as caught:
                await create_or_apply(
                    client, CONFIGMAPS, config("made", boss, x="ours"),
                    field_manager="test", known=known,
                )  # fmt: skip
            assert caught.value.object == theirs, whose
        assert await client.get(CONFIGMAPS, "made", "default") == theirs, whose
        await client.delete(CONFIGMAPS, "made", namespace="default")


@virtual_time
async def test_an_object_replaced_behind_the_cache_is_a_conflict() -> None:
    client = FakeApi().client()
    boss = await client.create(CONFIGMAPS, config("boss", None))
    ours = await client.create(CONFIGMAPS, config("made", boss))
    await client.delete(CONFIGMAPS, "made", namespace="default")
    await client.create(CONFIGMAPS, config("made", None, x="theirs"))
    with pytest.raises(KubeError) as caught:
        await create_or_apply(
            client, CONFIGMAPS, config("made", boss, x="ours"), field_manager="test", known=ours
        )
    assert caught.value.is_conflict


@virtual_time
async def test_an_object_without_owner_cannot_be_ensured() -> None:
    with pytest.raises(ValueError, match="name no controller"):
        await create_or_apply(
            FakeApi().client(), CONFIGMAPS, config("a", None), field_manager="test", known=None
        )


@pytest.mark.parametrize("after_effect", [False, True])
@virtual_time
async def test_a_crash_anywhere_leaves_what_the_next_try_completes(after_effect: bool) -> None:
    for crash_at in range(1, 6):
        api = FakeApi()
        boss = await api.client().create(CONFIGMAPS, config("boss", None))
        faults = Faults(crash_at=crash_at, crash_after_effect=after_effect)

        async def ensure(client: KubeClient, *, boss: Object = boss, **data: str) -> Object:
            wanted = config("made", boss, **data)
            return await create_or_apply(
                client, CONFIGMAPS, wanted, field_manager="test", known=None
            )

        try:
            await ensure(api.client(faults), x="1", y="1")
            await ensure(api.client(faults), x="2")
        except SimulatedCrash:
            pass
        final = await ensure(api.client(), x="2")
        assert final["data"] == {"x": "2"}, f"crash at write {crash_at}"
