"""`make bench-gateway` counts whole answers, notices the others, and finds what a process took."""

from __future__ import annotations

import asyncio
import os

import pytest
from benchmarks.gateway import (
    Cell,
    Effort,
    cell_rows,
    measure,
    memory_rows,
    one_round,
    request,
    single,
)
from benchmarks.harness import Progress
from benchmarks.parts import gateway_policies
from benchmarks.parts.gateway_rivals import our_gateway
from benchmarks.parts.gateway_stub import REFUSAL, Clients, Load, Stubs, direct
from tests.support.gateway_rig import eventually

BRIEF = Effort(1, 0.3, 20, 1.0)


@pytest.mark.parametrize(
    "cell",
    [Cell("at once"), Cell("fresh", fresh=True), Cell("paced", paced=True)],
    ids=lambda cell: cell.name,
)
async def test_every_sort_of_load_gets_whole_answers_through_the_gateway(cell: Cell) -> None:
    stubs = await Stubs().start(2, 1)
    core = min(os.sched_getaffinity(0))
    gateway = await our_gateway(stubs, core, "--access-log", "off", compiled=False)
    try:
        await measure([cell], [gateway], BRIEF, stubs, Progress())
        assert len(cell.us["pdserve"]) == 1
        assert cell.rates["pdserve"][0] > 0
        assert gateway.cpu > 0
        stubs.behaviour.refuse_every = 2
        assert len(await single(gateway, 20)) >= 18
        assert stubs.behaviour.refused >= 9, "each request was refused once"
        assert gateway.rss > 1 << 20
        assert 1 < cell.rss["pdserve"] < 1000
    finally:
        gateway.stop()
        stubs.stop()


async def test_an_answer_that_is_not_whole_is_no_success() -> None:
    replies = [REFUSAL, b"HTTP/1.1 200 OK\r\n\r\n2\r\nxx\r\n0\r\n\r\n"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(replies.pop(0))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    load = Load(server.sockets[0].getsockname()[1], request("x"), fresh=True)
    clients = Clients(load, 1)
    await clients.start()
    await eventually(lambda: load.failed >= 2, "both are noticed")
    load.stopping = True
    server.close()
    assert load.done == 0
    assert load.first_failure.startswith(b"HTTP/1.1 503")


async def test_a_round_with_a_failure_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    monkeypatch.setattr("benchmarks.gateway.request", lambda prompt: unknown)
    stubs = await Stubs().start(1, 1)
    gateway = await our_gateway(
        stubs, min(os.sched_getaffinity(0)), "--access-log", "off", compiled=False
    )
    try:
        cell = Cell("refused")
        with pytest.raises(AssertionError, match="404"):
            await one_round(cell, gateway, BRIEF, stubs.behaviour)
        assert not cell.us
    finally:
        gateway.stop()
        stubs.stop()


async def test_the_direct_way_takes_both_legs() -> None:
    stubs = await Stubs().start(1, 1)
    prefill, decode = (route.endpoint for route in stubs.routes)
    times = await direct(prefill, decode, request("x"), 5)
    stubs.stop()
    assert len(times) == 5
    assert stubs.behaviour.attempts == 5


def test_rows_compare_with_the_other_process() -> None:
    cell = Cell("M = 1", us={"pdserve": [100.0, 90.0, 110.0], "other": [150.0, 160.0, 170.0]})
    [row] = cell_rows([cell])
    assert (row.value, row.reference, row.vs, row.n) == (100.0, 160.0, "other", 3)
    assert row.spread == 20.0
    assert not row.ok
    assert cell_rows([Cell("alone", us={"pdserve": [100.0]})]) == []


def test_memory_is_compared_with_a_promise_and_with_the_other_process() -> None:
    small = Cell("small", rss={"pdserve": 30.0, "other": 100.0})
    last = Cell("last", rss={"pdserve": 60.0, "other": 120.0})
    promise, both = memory_rows(small, last)
    assert (promise.value, promise.reference, promise.ok) == (30.0, 40, True)
    assert (both.value, both.reference, both.vs) == (60.0, 120.0, "other")
    [alone] = memory_rows(Cell("s", rss={"pdserve": 50.0}), Cell("l", rss={"pdserve": 60.0}))
    assert not alone.ok


def test_policies_are_compared_in_virtual_time() -> None:
    rows = gateway_policies.rows([(0.95, 4)], 5.0, Progress())
    asked, ended = rows
    assert asked.ok and ended.ok
    assert "pair walk" in asked.vs and "exclude and retry" in asked.vs
    assert ended.value == 0.0
