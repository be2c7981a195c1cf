"""The work queue's promises, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from pdserve.dst.virtual_time import virtual_time
from pdserve.exposition import Registry
from pdserve.kube.workqueue import Backoff, QueueClosed, QueueKey, WorkQueue


def key(name: str, kind: str = "pod", namespace: str = "ns") -> QueueKey:
    return QueueKey(kind, namespace, name)


async def drain(queue: WorkQueue) -> list[str]:
    """Names of all keys ready now, each worked on at once."""
    names = []
    while len(queue):
        item = await queue.get()
        names.append(item.name)
        queue.done(item)
    return names


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_equal_keys_are_one() -> None:
    queue = WorkQueue()
    for name in ("a", "b", "a", "a"):
        queue.add(key(name))
    assert await drain(queue) == ["a", "b"]


@virtual_time
async def test_a_key_is_never_in_two_hands_and_runs_again_if_dirty() -> None:
    queue = WorkQueue()
    queue.add(key("a"))
    first = await queue.get()
    queue.add(key("a"))
    queue.add(key("a"))
    assert len(queue) == 0
    queue.done(first)
    assert await drain(queue) == ["a"]
    assert await drain(queue) == []


@virtual_time
async def test_kinds_take_turns() -> None:
    queue = WorkQueue()
    for index in range(4):
        queue.add(key(f"p{index}"))
    queue.add(key("s0", "service"))
    queue.add(key("s1", "service"))
    assert await drain(queue) == ["p0", "s0", "p1", "s1", "p2", "p3"]


@virtual_time
async def test_namespaces_take_turns_within_a_kind() -> None:
    queue = WorkQueue()
    for index in range(4):
        queue.add(key(f"a{index}", namespace="a"))
    queue.add(key("b0", namespace="b"))
    queue.add(key("b1", namespace="b"))
    assert await drain(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


@virtual_time
async def test_a_namespace_has_a_bounded_number_of_keys_in_work() -> None:
    queue = WorkQueue(per_namespace=2)
    for kind in ("pod", "service"):
        for index in range(2):
            queue.add(key(f"a{index}", kind, "a"))
    queue.add(key("b0", namespace="b"))
    held = [await queue.get() for _ in range(3)]
    assert sorted(item.namespace for item in held) == ["a", "a", "b"]
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(1000)
    assert not waiting.done()
    assert len(queue) == 2
    queue.add(key("c0", namespace="c"))
    assert (await waiting).name == "c0", "other namespaces go on meanwhile"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    assert not waiting.done()
    queue.done(next(item for item in held if item.namespace == "a"))
    assert (await waiting).namespace == "a"


@virtual_time
async def test_a_closed_queue_still_hands_out_keys_that_wait_for_their_namespace() -> None:
    queue = WorkQueue(per_namespace=1)
    queue.add(key("a0"))
    queue.add(key("a1"))
    first = await queue.get()
    queue.shut_down()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(1)
    queue.done(first)
    assert (await waiting).name == "a1"


@virtual_time
async def test_a_waiting_worker_gets_a_key_as_soon_as_it_is_added() -> None:
    queue = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(1)
    queue.add(key("a"))
    queue.add(key("b"))
    assert {(await worker).name for worker in workers} == {"a", "b"}


@virtual_time
async def test_a_cancelled_worker_loses_no_key() -> None:
    queue = WorkQueue()
    doomed, other = (asyncio.create_task(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add(key("a"))  # promised to `doomed`
    doomed.cancel()
    assert (await other).name == "a"


@virtual_time
async def test_shut_down_hands_out_what_is_ready_then_ends_every_worker() -> None:
    queue = WorkQueue()
    queue.add(key("a"))
    queue.add_after(key("later"), 10)
    queue.shut_down()
    queue.add(key("too late"))
    assert (await queue.get()).name == "a"
    with pytest.raises(QueueClosed):
        await queue.get()


@virtual_time
async def test_shut_down_wakes_waiting_workers() -> None:
    queue = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(1)
    queue.shut_down()
    results = await asyncio.gather(*workers, return_exceptions=True)
    assert all(isinstance(result, QueueClosed) for result in results)


@virtual_time
async def test_metrics_have_controller_runtimes_names_and_meaning() -> None:
    registry = Registry()
    queue = WorkQueue(registry=registry, backoff=Backoff(spread=0))
    queue.add(key("a"))
    queue.add(key("a"))
    queue.add(key("b"))
    labels = ("pod", "pod")
    assert registry.value("workqueue_adds_total", *labels) == 2
    assert registry.value("workqueue_depth", *labels) == 2
    await asyncio.sleep(3)
    item = await queue.get()
    assert registry.value("workqueue_queue_duration_seconds", *labels) == 1
    await asyncio.sleep(5)
    assert registry.value("workqueue_unfinished_work_seconds", *labels) == pytest.approx(5)
    assert registry.value("workqueue_longest_running_processor_seconds", *labels) == pytest.approx(
        5
    )
    queue.retry(item)
    queue.done(item)
    assert registry.value("workqueue_unfinished_work_seconds", *labels) == 0
    assert registry.value("workqueue_work_duration_seconds", *labels) == 1
    assert registry.value("workqueue_retries_total", *labels) == 1
    assert registry.value("workqueue_depth", *labels) == 1
    text = registry.render()
    assert 'workqueue_queue_duration_seconds_sum{name="pod",controller="pod"} 3' in text


@virtual_time
async def test_workers_and_writers_at_random_lose_nothing() -> None:
    """Every key is worked on after its last add; no key is ever in two hands."""
    rng = random.Random(7)
    queue = WorkQueue(rng=rng, backoff=Backoff(base=0.01, cap=0.5))
    added: dict[QueueKey, float] = {}
    worked: dict[QueueKey, float] = {}
    hands: set[QueueKey] = set()

    async def worker() -> None:
        while True:
            item = await queue.get()
            assert item not in hands
            hands.add(item)
            worked[item] = now()
            await asyncio.sleep(rng.uniform(0, 0.1))
            if rng.random() < 0.3:
                queue.retry(item)
            else:
                queue.forget(item)
            hands.discard(item)
            queue.done(item)

    async def writer() -> None:
        for _ in range(300):
            item = key(str(rng.randrange(20)), rng.choice(["pod", "node"]))
            if rng.random() < 0.5:
                queue.add(item)
            else:
                queue.add_after(item, rng.uniform(0, 1))
            added[item] = now()
            await asyncio.sleep(rng.uniform(0, 0.05))

    workers = [asyncio.create_task(worker()) for _ in range(3)]
    await asyncio.gather(writer(), writer())
    await asyncio.sleep(60)
    for task in workers:
        assert not task.done(), task.exception()
        task.cancel()
    assert all(worked[item] >= at for item, at in added.items())
    assert len(queue) == 0


@virtual_time
async def test_what_its_own_work_writes_is_no_reason_for_more() -> None:
    queue = WorkQueue()
    queue.add(key("a"))
    mine = await queue.get()
    with queue.ignoring(mine):
        queue.add(key("a"))
        queue.add(key("b"))
    queue.done(mine)
    assert await drain(queue) == ["b"]
    queue.add(key("a"))
    assert await drain(queue) == ["a"]
