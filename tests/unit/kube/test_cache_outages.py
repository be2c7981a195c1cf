"""What the cache does when lists and watches fail: outages, lost history, odd answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.support.cache_checks import config, patch, pruned, record, running

from pdserve.dst.api_net import BOOKMARK_SECONDS, FakeTransport, Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import run_virtual, virtual_time
from pdserve.exposition import Registry
from pdserve.kube.cache import RECONNECT, Cache
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.request import KubeRequest, KubeTransport
from pdserve.kube.resource import CONFIGMAPS, NODES, Object, Resource


@virtual_time
async def test_deletions_missed_while_away_come_out_of_the_next_list() -> None:
    api, faults, registry = FakeApi(), Faults(), Registry()
    for name in ("gone", "kept", "changed", "replaced"):
        await api.client().create(CONFIGMAPS, config(name))
    cache = Cache(api.client(faults), CONFIGMAPS, registry=registry)
    told = record(cache)
    async with running(cache):
        told.clear()
        faults.down = True
        api.wake_watches()
        await asyncio.sleep(30)
        await api.client().delete(CONFIGMAPS, "gone", namespace="default")
        await patch(api, "changed", "1")
        await api.client().delete(CONFIGMAPS, "replaced", namespace="default")
        await api.client().create(CONFIGMAPS, config("replaced"))
        await api.client().create(CONFIGMAPS, config("new"))
        api.expire_history(CONFIGMAPS)
        assert told == []
        state = cache.state()
        assert state.error
        assert "connection" in state.error
        assert state.age > 29
        assert cache.get("gone", "default") is not None, "reads go on from the copy"
        faults.down = False
        # One wait until it is back; none, but for its jitter, after the 410.
        await asyncio.sleep(RECONNECT.cap * (1 + RECONNECT.spread) + 1)
        assert sorted(told) == [
            ("ADDED", "new"),
            ("ADDED", "replaced"),
            ("DELETED", "gone"),
            ("DELETED", "replaced"),
            ("MODIFIED", "changed"),
        ]
        assert not cache.state().error
        assert registry.value("pdserve_cache_relists_total", "configmaps") == 2


@virtual_time
async def test_a_server_that_keeps_saying_410_is_not_hammered() -> None:
    api, registry = FakeApi(), Registry()
    cache = Cache(api.client(), CONFIGMAPS, registry=registry)
    async with running(cache):
        api.store(CONFIGMAPS).compacted = 10**6
        api.wake_watches()
        await asyncio.sleep(600)
        # Ten attempts until the wait is the cap, then at most one per shortest capped wait.
        most = 10 + 600 / (RECONNECT.cap * (1 - RECONNECT.spread))
        assert 30 < registry.value("pdserve_cache_relists_total", "configmaps") < most


class NoWatch(FakeTransport):
    """A server, or something before it, that answers lists but has no watch to give."""

    def __init__(self, api: FakeApi, documents: tuple[Any, ...]) -> None:
        super().__init__(api, Faults())
        self.documents = documents
        self.asked = 0

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        self.asked += 1
        for document in self.documents:
            yield document


@pytest.mark.parametrize(
    "documents",
    [
        (),
        ({},),
        ({"type": "ADDED"},),
        ({"type": 5, "object": {}},),
        ({"type": "ADDED", "object": "<html>"},),
        ({"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "many"}}},),
        ({"type": "BOOKMARK", "object": {}},),
        ({"type": "ERROR", "object": {"kind": "Status", "code": "x", "details": 5}},),
        ({"type": "ERROR", "object": {"code": 410}},),
    ],
    ids=str,
)
def test_where_no_watch_can_be_read_lists_stand_in_for_it(documents: tuple[Any, ...]) -> None:
    @virtual_time
    async def run() -> None:
        api, registry = FakeApi(), Registry()
        transport = NoWatch(api, documents)
        cache = Cache(KubeClient(transport), CONFIGMAPS, registry=registry)
        told = record(cache)
        async with running(cache):
            await asyncio.sleep(60)
            await api.client().create(CONFIGMAPS, config("a"))
            await asyncio.sleep(RECONNECT.cap * (1 + RECONNECT.spread) + 1)
            assert told == [("ADDED", "a")]
            api.handle(KubeRequest("delete", CONFIGMAPS, "default", "a"))
            blind = 0
            for _ in range(600):
                await asyncio.sleep(1)
                blind += bool(cache.state().error)
            assert told[1:] == [("DELETED", "a")]
            # What is seen may be old: nothing planned may lean on it.
            assert blind > 500
            assert transport.asked < 10 + 700 / (RECONNECT.cap * (1 - RECONNECT.spread))

    run()


@virtual_time
async def test_a_short_outage_is_resumed_without_a_list() -> None:
    api, faults, registry = FakeApi(), Faults(), Registry()
    cache = Cache(api.client(faults), CONFIGMAPS, registry=registry)
    told = record(cache)
    async with running(cache):
        faults.down = True
        api.wake_watches()
        await api.client().create(CONFIGMAPS, config("a"))
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        await asyncio.sleep(5)
        faults.down = False
        await asyncio.sleep(30)
        assert told == [("ADDED", "a"), ("DELETED", "a")]
        assert registry.value("pdserve_cache_relists_total", "configmaps") == 1


@virtual_time
async def test_bookmarks_keep_a_quiet_watch_resumable_and_young() -> None:
    api, registry = FakeApi(), Registry()
    cache = Cache(api.client(), CONFIGMAPS, registry=registry)
    async with running(cache):
        for _ in range(40):
            # Other kinds move the version on; without bookmarks our own would expire.
            await api.client().create(NODES, {"metadata": {"generateName": "n"}})
            api.expire_history(CONFIGMAPS)
            await asyncio.sleep(61)
            assert cache.state().age <= 61
        assert registry.value("pdserve_cache_relists_total", "configmaps") <= 8
        assert registry.value("pdserve_cache_failures_total", "configmaps") <= 8


@virtual_time
async def test_a_bookmark_never_passes_a_change_of_the_same_moment() -> None:
    """Of the API model: a real API server sends a bookmark after what it stands for."""
    api, loop = FakeApi(), asyncio.get_running_loop()
    await api.client().create(CONFIGMAPS, config("a"))
    gone = KubeRequest("delete", CONFIGMAPS, "default", "a")
    cache = Cache(api.client(), CONFIGMAPS)
    async with running(cache):
        loop.call_at(loop.time() + BOOKMARK_SECONDS, api.handle, gone)
        await asyncio.sleep(BOOKMARK_SECONDS + 1)
        assert cache.list() == ()


@virtual_time
async def test_an_unreachable_server_is_waited_for_with_growing_pauses() -> None:
    api, faults, registry = FakeApi(), Faults(), Registry()
    faults.down = True
    cache = Cache(api.client(faults), CONFIGMAPS, registry=registry)
    task = asyncio.create_task(cache.run())
    await asyncio.sleep(3600)
    assert not task.done()
    assert not cache.synced.is_set()
    attempts = registry.value("pdserve_cache_failures_total", "configmaps")
    assert 3600 / 20 < attempts < 3600 / 10, "capped at 15 s with a spread"
    faults.down = False
    async with asyncio.timeout(20):
        await cache.synced.wait()
    task.cancel()


@virtual_time
async def test_a_missing_kind_or_right_does_not_end_the_cache() -> None:
    api = FakeApi()
    cache = Cache(api.client(), Resource("later.test", "v1", "things", "Thing"))
    task = asyncio.create_task(cache.run())
    await asyncio.sleep(300)
    assert not task.done()
    assert "404" in cache.state().error
    task.cancel()


class Switched:
    """A connection behind whose address the server can be exchanged for another."""

    def __init__(self, inner: KubeTransport) -> None:
        self.inner = inner

    async def send(self, request: KubeRequest) -> Object:
        return await self.inner.send(request)

    def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        return self.inner.stream(request)

    async def close(self) -> None:
        await self.inner.close()


@virtual_time
async def test_a_server_restored_from_a_backup_is_accepted() -> None:
    api, faults = FakeApi(), Faults()
    for index in range(50):
        await api.client().create(CONFIGMAPS, config(f"c{index}"))
    transport = Switched(FakeTransport(api, faults))
    cache = Cache(KubeClient(transport), CONFIGMAPS)
    async with running(cache):
        restored = FakeApi()
        await restored.client().create(CONFIGMAPS, config("c1"))
        await restored.client().create(CONFIGMAPS, config("restored"))
        transport.inner = FakeTransport(restored, faults)
        faults.down = True
        api.wake_watches()
        await asyncio.sleep(1)
        faults.down = False
        restored.store(CONFIGMAPS).compacted = 10**6  # its watch cache starts anew: 410
        await asyncio.sleep(60)
        assert [o["metadata"]["name"] for o in cache.list()] == ["c1", "restored"]


@pytest.mark.parametrize("seed", range(40))
def test_any_schedule_of_faults_ends_in_the_servers_state(seed: int) -> None:
    """Writers, a cache behind a bad network, write-through; at the end both agree.

    On the way: no event contradicts the one before it for the same object, and no object ever
    goes back to an older version.
    """
    run_virtual(_storm(seed))


async def _storm(seed: int) -> None:
    rng = random.Random(seed)
    faults = Faults(
        seed=seed, latency=(0, 0.2), refuse=0.1, lose_answer=0.1, watch_delay=(0, 0.5),
        watch_break=0.1, watch_repeat=0.1, watch_swap=0.2, expire=0.3,
    )  # fmt: skip
    api, registry = FakeApi(), Registry()
    rng_of_cache = random.Random(seed)
    cache = Cache(api.client(faults), CONFIGMAPS, registry=registry, rng=rng_of_cache, page_size=3)
    held: dict[str, tuple[str, int]] = {}

    def check(event: str, old: Object | None, new: Object | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        if event == "ADDED":
            assert name not in held
        else:
            assert old is not None
            assert held[name][0] == old["metadata"]["uid"]
        if event == "DELETED":
            del held[name]
            return
        assert new is not None
        uid, version = new["metadata"]["uid"], int(new["metadata"]["resourceVersion"])
        assert version >= held.get(name, ("", 0))[1]
        held[name] = (uid, version)

    cache.on_change(check)
    ours = api.client(faults)

    async def write() -> None:
        name = f"c{rng.randrange(6)}"
        choice = rng.random()
        try:
            if choice < 0.4:
                cache.observe(await ours.create(CONFIGMAPS, config(name)))
            elif choice < 0.7:
                value = [{"op": "add", "path": "/data/x", "value": str(rng.random())}]
                cache.observe(await ours.patch_json(CONFIGMAPS, name, value, namespace="default"))
            else:
                await ours.delete(CONFIGMAPS, name, namespace="default")
        except KubeError:
            pass

    async def writer() -> None:
        for _ in range(60):
            await write()
            await asyncio.sleep(rng.uniform(0, 1))

    task = asyncio.create_task(cache.run())
    await asyncio.gather(writer(), writer())
    faults.watch_break = faults.refuse = 0
    await asyncio.sleep(120)
    assert not task.done()
    task.cancel()
    errors = registry.value("pdserve_cache_handler_errors_total", "configmaps")
    assert errors == 0, f"seed {seed}: see the log"
    want = {o["metadata"]["name"]: pruned(o) for o in api.objects(CONFIGMAPS)}
    assert {o["metadata"]["name"]: o for o in cache.list()} == want, f"seed {seed}"
    assert set(held) == set(want)


class WrongLists(FakeTransport):
    """Its first answers to lists are none."""

    def __init__(self, api: FakeApi, faults: Faults) -> None:
        super().__init__(api, faults)
        self.wrong: list[Any] = [5, {"items": [5]}, {"items": [{"metadata": None}]}, {}]

    async def send(self, request: KubeRequest) -> Object:
        if self.wrong and request.verb == "list":
            answer: Object = self.wrong.pop(0)
            return answer
        return await super().send(request)


@virtual_time
async def test_an_answer_that_is_no_list_is_asked_for_again() -> None:
    api = FakeApi()
    await api.client().create(CONFIGMAPS, config("a"))
    transport = WrongLists(api, Faults())
    cache = Cache(KubeClient(transport), CONFIGMAPS)
    async with running(cache):
        assert transport.wrong == []
        assert len(cache) == 1
