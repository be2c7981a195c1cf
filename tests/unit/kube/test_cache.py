"""The cache's promises against the in-memory API model, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.cache_checks import config, patch, pruned, record, running, settle

from pdserve.dst.api_net import Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.exposition import Registry
from pdserve.kube.cache import Cache
from pdserve.kube.prune import without_managed_fields
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, NODES, Object


class ListedApi(FakeApi):
    """Says when it has made the answer to a second list."""

    def __init__(self) -> None:
        super().__init__()
        self.second_list = asyncio.Event()
        self._lists = 0

    def handle(self, request: KubeRequest) -> Object:
        answer = super().handle(request)
        self._lists += request.verb == "list"
        if self._lists == 2:
            self.second_list.set()
        return answer


@virtual_time
async def test_lists_then_follows() -> None:
    api = FakeApi()
    for name in ("b", "a"):
        await api.client().create(CONFIGMAPS, config(name))
    cache = Cache(api.client(), CONFIGMAPS)
    told = record(cache)
    async with running(cache):
        assert told == [("ADDED", "a"), ("ADDED", "b")]
        await patch(api, "a", "1")
        await api.client().create(CONFIGMAPS, config("c"))
        await api.client().delete(CONFIGMAPS, "b", namespace="default")
        await settle()
        assert told[2:] == [("MODIFIED", "a"), ("ADDED", "c"), ("DELETED", "b")]
        assert [obj["metadata"]["name"] for obj in cache.list()] == ["a", "c"]
        found = cache.get("a", "default")
        assert found is not None
        assert found["data"] == {"x": "1"}
        assert cache.get("b", "default") is None
        assert cache.list("elsewhere") == ()


@virtual_time
async def test_reads_see_our_own_writes_and_handlers_hear_of_them_once() -> None:
    api = FakeApi()
    cache = Cache(api.client(Faults(watch_delay=(5, 5))), CONFIGMAPS)
    told = record(cache)
    async with running(cache):
        created = await api.client().create(CONFIGMAPS, config("a"))
        assert cache.observe(created)
        assert cache.get("a", "default") == pruned(created)
        changed = await patch(api, "a", "1")
        assert cache.observe(changed)
        assert told == [("ADDED", "a"), ("MODIFIED", "a")]
        await asyncio.sleep(30)
        assert told == [("ADDED", "a"), ("MODIFIED", "a")], "the watch brought nothing new"
        assert cache.get("a", "default") == pruned(changed)


@virtual_time
async def test_a_late_answer_never_takes_the_cache_back() -> None:
    api = FakeApi()
    cache = Cache(api.client(), CONFIGMAPS)
    async with running(cache):
        first = await api.client().create(CONFIGMAPS, config("a"))
        second = await patch(api, "a", "2")
        await settle()
        assert not cache.observe(first)
        assert not cache.observe(second)
        assert cache.get("a", "default") == pruned(second)
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        await settle()
        assert not cache.observe(second), "the object is gone; its last answer is late"
        assert cache.get("a", "default") is None


@virtual_time
async def test_a_list_older_than_our_write_does_not_remove_it() -> None:
    """The list was taken at second 5 and arrives at 10; the object was made at 7."""
    api = FakeApi()
    cache = Cache(api.client(Faults(latency=(5, 5))), CONFIGMAPS)
    told = record(cache)
    task = asyncio.create_task(cache.run())
    await asyncio.sleep(7)
    assert cache.observe(await api.client().create(CONFIGMAPS, config("a")))
    await cache.synced.wait()
    assert cache.get("a", "default") is not None
    await asyncio.sleep(60)
    assert told == [("ADDED", "a")]
    task.cancel()


@virtual_time
async def test_the_delayed_end_of_a_predecessor_does_not_remove_its_successor() -> None:
    api = FakeApi()
    cache = Cache(api.client(Faults(watch_delay=(5, 5))), CONFIGMAPS)
    async with running(cache):
        cache.observe(await api.client().create(CONFIGMAPS, config("a")))
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        told = record(cache)
        successor = await api.client().create(CONFIGMAPS, config("a"))
        assert cache.observe(successor)
        assert told == [("DELETED", "a"), ("ADDED", "a")], "another uid is another object"
        await asyncio.sleep(60)
        assert cache.get("a", "default") == pruned(successor)
        assert len(told) == 2


@virtual_time
async def test_gone_is_taken_in_for_that_very_object_only() -> None:
    api = FakeApi()
    cache = Cache(api.client(), CONFIGMAPS)
    async with running(cache):
        created = await api.client().create(CONFIGMAPS, config("a"))
        cache.observe(created)
        await settle()
        other = {**created, "metadata": {**created["metadata"], "uid": "another"}}
        assert not cache.observe_gone(other)
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        assert cache.observe_gone(created)
        assert not cache.observe_gone(created)
        await settle()
        assert cache.get("a", "default") is None


@virtual_time
async def test_late_events_do_not_bring_back_what_is_gone() -> None:
    api = FakeApi()
    cache = Cache(api.client(Faults(watch_delay=(5, 5))), CONFIGMAPS)
    told = record(cache)
    async with running(cache):
        created = await api.client().create(CONFIGMAPS, config("a"))
        cache.observe(created)
        await patch(api, "a", "1")
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        assert cache.observe_gone(created)
        for _ in range(30):
            await asyncio.sleep(1)
            assert cache.get("a", "default") is None
        assert told == [("ADDED", "a"), ("DELETED", "a")]
        successor = await api.client().create(CONFIGMAPS, config("a"))
        await asyncio.sleep(30)
        assert cache.get("a", "default") == pruned(successor)


@virtual_time
async def test_a_list_from_before_its_end_does_not_bring_back_what_is_gone() -> None:
    api, faults = ListedApi(), Faults(latency=(2, 2))
    cache = Cache(api.client(faults), CONFIGMAPS)
    async with running(cache):
        created = await api.client().create(CONFIGMAPS, config("a"))
        await asyncio.sleep(10)
        assert cache.get("a", "default") is not None
        faults.down = True
        await asyncio.sleep(1)
        await patch(api, "a", "1")
        api.expire_history(CONFIGMAPS)
        faults.down = False
        async with asyncio.timeout(60):
            await api.second_list.wait()
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        assert cache.observe_gone(created)
        for _ in range(300):
            await asyncio.sleep(0.1)
            assert cache.get("a", "default") is None


@virtual_time
async def test_what_pruning_drops_wake_no_handler() -> None:
    api = FakeApi()
    await api.client().create(NODES, {"metadata": {"name": "n"}, "spec": {"unschedulable": False}})

    def spec_only(obj: Object) -> Object:
        return {k: v for k, v in without_managed_fields(obj).items() if k != "status"}

    cache = Cache(api.client(), NODES, prune=spec_only)
    told = record(cache)
    async with running(cache):
        told.clear()
        beat = {"conditions": [{"type": "Ready", "lastHeartbeatTime": "t"}]}
        answer = await api.client().patch_status(NODES, "n", beat, strategic=True)
        await settle()
        assert told == []
        held = cache.get("n")
        assert held is not None
        assert held["metadata"]["resourceVersion"] == answer["metadata"]["resourceVersion"]
        operation = {"op": "replace", "path": "/spec/unschedulable", "value": True}
        await api.client().patch_json(NODES, "n", [operation])
        await settle()
        assert told == [("MODIFIED", "n")]


@virtual_time
async def test_objects_come_and_go_as_the_pruning_filter_says() -> None:
    api = FakeApi()
    cache = Cache(
        api.client(), CONFIGMAPS, prune=lambda o: o if o["data"].get("x") == "mine" else None
    )
    told = record(cache)
    await api.client().create(CONFIGMAPS, config("a", {"x": "not"}))
    async with running(cache):
        assert len(cache) == 0
        await patch(api, "a", "mine")
        await settle()
        await patch(api, "a", "not")
        await settle()
        assert told == [("ADDED", "a"), ("DELETED", "a")]
        await api.client().delete(CONFIGMAPS, "a", namespace="default")
        await settle()
        assert len(told) == 2


@virtual_time
async def test_indexes_follow_every_change() -> None:
    api = FakeApi()
    await api.client().create(CONFIGMAPS, config("b", {"x": "1"}))
    await api.client().create(CONFIGMAPS, config("a", {"x": "1"}))
    cache = Cache(api.client(), CONFIGMAPS)
    cache.add_index("x", lambda obj: obj["data"].values())
    async with running(cache):
        cache.add_index("late", lambda obj: [obj["metadata"]["name"]])

        def names(index: str, value: str) -> list[str]:
            return [obj["metadata"]["name"] for obj in cache.by_index(index, value)]

        assert names("x", "1") == ["a", "b"]
        assert names("late", "b") == ["b"]
        await patch(api, "a", "2")
        await api.client().delete(CONFIGMAPS, "b", namespace="default")
        await settle()
        assert names("x", "1") == []
        assert names("x", "2") == ["a"]
        assert cache.index_values("x") == {"2"}
        assert names("late", "b") == []
        with pytest.raises(KeyError):
            cache.by_index("unknown", "1")


@virtual_time
async def test_a_raising_handler_blinds_no_other() -> None:
    api, registry = FakeApi(), Registry()
    cache = Cache(api.client(), CONFIGMAPS, registry=registry)
    cache.on_change(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    told = record(cache)
    async with running(cache):
        await api.client().create(CONFIGMAPS, config("a"))
        await settle()
        assert told == [("ADDED", "a")]
        assert registry.value("pdserve_cache_handler_errors_total", "configmaps") == 1


@virtual_time
async def test_what_cannot_be_read_is_skipped_told_and_stops_nothing() -> None:
    api = FakeApi()
    for name in ("a", "bad", "worse"):
        await api.client().create(CONFIGMAPS, config(name, {"x": "1"}))
    skipped: list[tuple[str, str, str]] = []

    def on_skip(obj: object, where: str, error: Exception) -> None:
        assert isinstance(obj, dict)
        skipped.append((obj["metadata"]["name"], where, str(error)))

    def prune(obj: Object) -> Object | None:
        if obj["data"].get("x") == "poison":
            raise RecursionError("too deep")
        return obj

    def values(obj: Object) -> list[str]:
        if obj["metadata"]["name"] == "worse":
            raise KeyError("spec")
        return [obj["data"]["x"]]

    cache = Cache(api.client(), CONFIGMAPS, prune=prune, on_skip=on_skip)
    cache.add_index("x", values)
    told = record(cache)
    async with running(cache):
        assert skipped == [("worse", "index", "'spec'")]
        assert [o["metadata"]["name"] for o in cache.by_index("x", "1")] == ["a", "bad"]
        assert cache.get("worse", "default") is not None, "only the index leaves it out"
        skipped.clear()
        await patch(api, "bad", "poison")
        await patch(api, "a", "2")
        await settle()
        assert skipped == [("bad", "filter", "too deep")]
        kept = cache.get("bad", "default")
        assert kept is not None
        assert kept["data"] == {"x": "1"}, "what could be read last is kept"
        assert [o["metadata"]["name"] for o in cache.by_index("x", "2")] == ["a"]
        api.expire_history(CONFIGMAPS)
        api.wake_watches()
        await asyncio.sleep(60)
        assert cache.get("bad", "default") == kept, "a list in which it is unreadable keeps it too"
        await patch(api, "bad", "3")
        await settle()
        assert [o["metadata"]["name"] for o in cache.by_index("x", "3")] == ["bad"]
        await api.client().delete(CONFIGMAPS, "bad", namespace="default")
        await api.client().delete(CONFIGMAPS, "worse", namespace="default")
        await settle()
        assert [e for e, _ in told[-2:]] == ["DELETED", "DELETED"]
        assert len(cache) == 1
