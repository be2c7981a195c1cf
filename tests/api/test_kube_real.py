"""Cluster access against a real kube-apiserver: lists, watches, ownership, leases, events."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import pytest_asyncio

from localcluster.controlplane import ControlPlane
from pdserve.exposition import Registry
from pdserve.kube.cache import Cache
from pdserve.kube.client import KubeClient, WatchEvent
from pdserve.kube.connect import api_client, connect
from pdserve.kube.errors import KubeError
from pdserve.kube.events import EventRecorder, Reporter
from pdserve.kube.lease import LeaseElector, LeaseTimes
from pdserve.kube.ownership import NotOursError, create_or_apply, owner_reference
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS, EVENTS, LEASES, NAMESPACES, PODS, Object
from pdserve.kube.transport import HttpTransport

pytestmark = pytest.mark.api
_NAMES = itertools.count()


@pytest_asyncio.fixture
async def client(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    client = await connect(control_plane.kubeconfig)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def namespace(client: KubeClient) -> str:
    created = await client.create(NAMESPACES, {"metadata": {"generateName": "kube-real-"}})
    name: str = created["metadata"]["name"]
    return name


def config(namespace: str, name: str, *, owner: Object | None = None, **data: str) -> Object:
    meta: Object = {"name": name, "namespace": namespace}
    if owner is not None:
        meta["ownerReferences"] = [owner_reference(owner)]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


async def until(condition: Callable[[], bool], seconds: float = 40.0) -> float:
    """Poll with a deadline; returns the seconds it took."""
    start = asyncio.get_running_loop().time()
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0.01)
    return asyncio.get_running_loop().time() - start


async def changes(watch: AsyncIterator[WatchEvent]) -> AsyncIterator[WatchEvent]:
    """Without bookmarks, which the server sends when it likes."""
    async for event in watch:
        if event.type != "BOOKMARK":
            yield event


async def test_a_list_in_pages_is_whole_ordered_and_consistent(
    client: KubeClient, namespace: str
) -> None:
    names = [f"c{index:02}" for index in range(25)]
    for name in names:
        await client.create(CONFIGMAPS, config(namespace, name))
    for page_size in (0, 1, 7, 25, 500):
        listing = await client.list(CONFIGMAPS, namespace, page_size=page_size)
        assert [item["metadata"]["name"] for item in listing.items] == names
        assert int(listing.resource_version) > 0


async def test_a_watch_resumes_from_where_it_ended(client: KubeClient, namespace: str) -> None:
    start = (await client.list(CONFIGMAPS, namespace)).resource_version
    await client.create(CONFIGMAPS, config(namespace, "a"))
    version = start
    async for event in changes(client.watch(CONFIGMAPS, namespace, resource_version=start)):
        assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "a")
        version = event.object["metadata"]["resourceVersion"]
        break
    await client.create(CONFIGMAPS, config(namespace, "b"))
    await client.delete(CONFIGMAPS, "a", namespace=namespace)
    seen = []
    async for event in changes(client.watch(CONFIGMAPS, namespace, resource_version=version)):
        seen.append((event.type, event.object["metadata"]["name"]))
        if len(seen) == 2:
            break
    assert seen == [("ADDED", "b"), ("DELETED", "a")]


async def test_the_server_ends_a_watch_as_asked(client: KubeClient, namespace: str) -> None:
    start = (await client.list(CONFIGMAPS, namespace)).resource_version
    async with asyncio.timeout(60):
        watch = client.watch(CONFIGMAPS, namespace, resource_version=start, seconds=1)
        types = [event.type async for event in watch]
    assert set(types) <= {"BOOKMARK"}


async def test_an_object_bigger_than_any_buffer_comes_through_a_watch(
    client: KubeClient, namespace: str
) -> None:
    """Lines arrive in many packets; 900 KB is close to the most that etcd takes."""
    start = (await client.list(CONFIGMAPS, namespace)).resource_version
    data = "ä" * 450_000
    await client.create(CONFIGMAPS, config(namespace, "big", x=data))
    async for event in changes(client.watch(CONFIGMAPS, namespace, resource_version=start)):
        assert event.object["data"]["x"] == data
        break


async def test_a_cache_follows_the_real_server(client: KubeClient, namespace: str) -> None:
    registry = Registry()
    cache = Cache(client, CONFIGMAPS, namespace=namespace, page_size=2, registry=registry)
    told: list[tuple[str, str]] = []
    cache.on_change(lambda e, old, new: told.append((e, (new or old or {})["metadata"]["name"])))
    for name in ("a", "b", "c"):
        await client.create(CONFIGMAPS, config(namespace, name))
    task = asyncio.create_task(cache.run())
    await until(cache.synced.is_set)
    assert told == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c")]
    answer = await client.patch_json(
        CONFIGMAPS, "a", [{"op": "add", "path": "/data", "value": {"x": "1"}}], namespace=namespace
    )
    await client.delete(CONFIGMAPS, "b", namespace=namespace)
    await until(lambda: ("DELETED", "b") in told)
    assert not cache.observe(answer), "the watch has shown it already"
    created = await client.create(CONFIGMAPS, config(namespace, "d"))
    cache.observe(created)
    assert cache.get("d", namespace) is not None
    await client.create(CONFIGMAPS, config(namespace, "e"))
    await until(lambda: ("ADDED", "e") in told)
    assert told[3:] == [("MODIFIED", "a"), ("DELETED", "b"), ("ADDED", "d"), ("ADDED", "e")]
    assert not cache.state().error
    assert registry.value("pdserve_cache_relists_total", "configmaps") == 1
    task.cancel()


async def test_the_answer_to_a_delete_may_be_observed(client: KubeClient, namespace: str) -> None:
    """An unbound pod is gone at once, a bound one stays terminating: both answers are objects."""
    cache = Cache(client, PODS, namespace=namespace)
    task = asyncio.create_task(cache.run())
    await until(cache.synced.is_set)
    spec = {"containers": [{"name": "c", "image": "i"}]}
    for name, node in (("free", {}), ("bound", {"nodeName": "nowhere"})):
        pod = {"metadata": {"name": name, "namespace": namespace}, "spec": {**spec, **node}}
        cache.observe(await client.create(PODS, pod))
        cache.observe(await client.delete(PODS, name, namespace=namespace))
    bound = cache.get("bound", namespace)
    assert bound is not None
    assert "deletionTimestamp" in bound["metadata"]
    await until(lambda: cache.get("free", namespace) is None)
    assert cache.get("bound", namespace) is not None
    task.cancel()


@pytest.mark.invariant(9)
async def test_a_users_object_is_refused_and_left_as_it_was(
    client: KubeClient, namespace: str
) -> None:
    boss = await client.create(CONFIGMAPS, config(namespace, "boss"))
    theirs = await client.create(CONFIGMAPS, config(namespace, "made", x="theirs"))
    with pytest.raises(NotOursError, match=f"ConfigMap {namespace}/made exists and has no contr"):
        await create_or_apply(
            client, CONFIGMAPS, config(namespace, "made", owner=boss, x="ours"),
            field_manager="test", known=None,
        )  # fmt: skip
    assert await client.get(CONFIGMAPS, "made", namespace) == theirs


async def test_what_is_left_out_later_goes_away(client: KubeClient, namespace: str) -> None:
    boss = await client.create(CONFIGMAPS, config(namespace, "boss"))
    made = None
    for data in ({"x": "1", "y": "1"}, {"x": "2"}, {"z": "3"}, {"z": "3"}):
        before = made
        made = await create_or_apply(
            client, CONFIGMAPS, config(namespace, "made", owner=boss, **data),
            field_manager="test", known=made,
        )  # fmt: skip
        assert made["data"] == data
    assert before is not None
    assert made is not None
    assert made["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    (entry,) = made["metadata"]["managedFields"]
    assert entry["operation"] == "Apply"


TIMES = LeaseTimes(duration=12, renew_deadline=8, retry=0.5)
"""A leader that stands still for `renew_deadline` gives up, and rightly: longer than busy machines
make it wait."""
SOON = 9.0
"""Seconds to take over from a leader that ended; one that went without a word costs `duration`."""
HANDED_OVER = ["one works", "one ended", "two works"]


class Mortal(HttpTransport):
    """A connection whose process can be declared dead: nothing is sent any more."""

    dead = False

    async def send(self, request: KubeRequest) -> Object:
        if self.dead:
            raise KubeError(0, "Unreachable", "killed")
        return await super().send(request)


class Candidate:
    def __init__(self, client: KubeClient, namespace: str, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen
        self.working = False
        self.elector = LeaseElector(client, namespace, "boss", name, times=TIMES)
        self.task = asyncio.create_task(self.elector.run(self.work))

    async def work(self) -> None:
        self.working = True
        self.seen.append(f"{self.name} works")
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False
            self.seen.append(f"{self.name} ended")


async def test_two_electors_hand_over_on_a_clean_exit(client: KubeClient, namespace: str) -> None:
    seen: list[str] = []
    one = Candidate(client, namespace, "one", seen)
    await until(lambda: one.working)
    two = Candidate(client, namespace, "two", seen)
    await until(lambda: bool(two.elector.holder))
    assert not two.working
    one.task.cancel()
    with suppress(asyncio.CancelledError):
        await one.task
    assert not one.working
    assert await until(lambda: two.working) < SOON
    assert seen == HANDED_OVER
    lease = await client.get(LEASES, "boss", namespace)
    assert lease["spec"]["holderIdentity"] == two.elector.identity
    assert lease["spec"]["leaseTransitions"] == 1
    two.task.cancel()


async def test_two_electors_hand_over_after_a_kill(
    client: KubeClient, namespace: str, control_plane: ControlPlane
) -> None:
    transport = Mortal(await api_client(control_plane.kubeconfig), Registry())
    doomed = KubeClient(transport)
    seen: list[str] = []
    one = Candidate(doomed, namespace, "one", seen)
    await until(lambda: one.working)
    two = Candidate(client, namespace, "two", seen)
    await until(lambda: bool(two.elector.holder))

    transport.dead = True
    await until(lambda: not one.working)
    assert await until(lambda: two.working) < SOON
    assert seen == HANDED_OVER, "the old leader ends first"
    one.task.cancel()
    two.task.cancel()
    await doomed.close()


async def test_events_are_accepted_and_counted(client: KubeClient, namespace: str) -> None:
    subject = await client.create(CONFIGMAPS, config(namespace, "subject"))
    meta = {"name": f"n{next(_NAMES)}", "uid": "u"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": meta}
    recorder = EventRecorder(client, Reporter("test"), ("Placed",))
    recorder.event(subject, "Normal", "Placed", "First.")
    recorder.event(node, "Warning", "Placed", "On a cluster-scoped object.")
    await recorder.flush()
    recorder.event(subject, "Normal", "Placed", "First.")
    await recorder.flush()
    (event,) = (await client.list(EVENTS, namespace)).items
    assert (event["reason"], event["count"], event["type"]) == ("Placed", 2, "Normal")
    selector = f"involvedObject.name={meta['name']}"
    assert len((await client.list(EVENTS, "default", field_selector=selector)).items) == 1
