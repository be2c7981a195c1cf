"""Keys asked for later: delays, looks for time, backoff, rests."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest

from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.workqueue import Backoff, QueueKey, WorkQueue


def key(name: str, kind: str = "pod", namespace: str = "ns") -> QueueKey:
    return QueueKey(kind, namespace, name)


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_a_look_for_time_replaces_the_former_one_and_no_request_of_others() -> None:
    queue = WorkQueue()
    queue.look_again(key("a"), 10.0)
    queue.add_after(key("a"), 30.0)
    queue.look_again(key("a"), 60.0)
    await asyncio.sleep(29)
    assert not len(queue), "the look after ten seconds was taken back"
    await asyncio.sleep(2)
    assert len(queue) == 1
    queue.done(await queue.get())
    await asyncio.sleep(28)
    assert not len(queue)
    await asyncio.sleep(2)
    queue.done(await queue.get())
    queue.look_again(key("a"), 5.0)
    queue.look_again(key("a"), None)
    await asyncio.sleep(100)
    assert not len(queue)


@virtual_time
async def test_requests_that_earlier_ones_replaced_do_not_pile_up() -> None:
    queue = WorkQueue()
    keys = [key(f"a{number}") for number in range(3)]
    before = [sys.getrefcount(each) for each in keys]
    for number in range(3000):
        queue.add_after(keys[number % 3], 5000.0 - number)
    queue.add_after(key("b"), 9000.0)
    held = [sys.getrefcount(each) - was for each, was in zip(keys, before, strict=True)]
    assert sum(held) < 200, "each request that is kept holds its key"
    await asyncio.sleep(2003)
    assert [(await queue.get()).name for _ in range(3)] == ["a2", "a1", "a0"]
    assert not len(queue)
    await asyncio.sleep(7000)
    assert (await queue.get()).name == "b"


@virtual_time
async def test_of_several_delays_the_earliest_counts() -> None:
    queue = WorkQueue()
    start = now()
    for delay in (30.0, 5.0, 60.0):
        queue.add_after(key("a"), delay)
    await queue.get()
    assert now() - start == pytest.approx(5)
    queue.done(key("a"))
    await asyncio.sleep(100)
    assert len(queue) == 0, "the later requests are gone"


@virtual_time
async def test_delayed_keys_come_in_order_of_time() -> None:
    queue = WorkQueue()
    queue.add_after(key("late"), 2)
    queue.add_after(key("soon"), 1)
    queue.add_after(key("now"), 0)
    assert [(await queue.get()).name for _ in range(3)] == ["now", "soon", "late"]


@virtual_time
async def test_backoff_doubles_is_capped_and_forgotten() -> None:
    queue = WorkQueue(backoff=Backoff(base=1, cap=8, spread=0))
    delays = [queue.retry(key("a")) for _ in range(6)]
    assert delays == [1, 2, 4, 8, 8, 8]
    assert queue.failures(key("a")) == 6
    queue.forget(key("a"))
    assert queue.retry(key("a")) == 1
    assert queue.retry(key("b")) == 1, "each key has its own"


def test_backoff_spread_is_within_its_bounds_and_never_overflows() -> None:
    backoff, rng = Backoff(base=1, cap=60, spread=0.2), random.Random(1)
    first = [backoff.delay(1, rng) for _ in range(200)]
    assert 0.8 <= min(first) < 0.85
    assert 1.15 < max(first) <= 1.2
    assert backoff.delay(10_000, rng) <= 72


@virtual_time
async def test_one_key_rests_between_two_works_and_others_do_not_wait() -> None:
    queue = WorkQueue(spacing=0.5)
    queue.add(key("a"))
    first = await queue.get()
    queue.add(key("a"))  # while it is in work
    queue.done(first)
    began = now()
    queue.add(key("b"))
    assert await queue.get() == key("b")
    assert now() == began
    assert await queue.get() == key("a")
    assert now() - began == pytest.approx(0.5, abs=1e-3)


@virtual_time
async def test_changes_during_a_rest_are_one_work() -> None:
    queue = WorkQueue(spacing=0.5)
    queue.add(key("a"))
    queue.done(await queue.get())
    for _ in range(4):
        await asyncio.sleep(0.1)
        queue.add(key("a"))
    queue.done(await queue.get())
    await asyncio.sleep(5)
    assert len(queue) == 0


@virtual_time
async def test_a_key_that_rested_is_worked_on_at_once() -> None:
    queue = WorkQueue(spacing=0.5)
    for _ in range(3):
        queue.add(key("a"))
        began = now()
        queue.done(await queue.get())
        assert now() == began
        await asyncio.sleep(0.6)
