"""An engine whose prefill and decode get a request at once (SGLang's order of legs)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import engine_types as e
from tests.support.gateway_rig import SLO, Rig, eventually
from tests.support.room_engine import RoomEngine, Rooms

from pdserve.gateway.leg_bodies import LegBodies
from pdserve.gateway.request_driver import RequestDriver
from pdserve.terms import Slo
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable


class Pairs:
    """A gateway over one P/D group of such engines."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.rooms = Rooms()
        self.engines: dict[str, RoomEngine] = {}

    async def start(self, prefills: int = 1, decodes: int = 1, slo: Any = SLO) -> None:
        for role, count in (("prefill", prefills), ("decode", decodes)):
            for i in range(count):
                name = f"{role[0]}{i}"
                made = RoomEngine(self.rooms, role, name, slots=2)  # type: ignore[arg-type]
                self.engines[name] = self.rig.engines[name] = made
                await made.start()
        await self.rig.start()
        group = RouteGroup(0, "r1", tuple(x.route() for x in self.engines.values()))
        scenario = RouteScenario("chat", slo, (group,))
        await self.rig.source.push(RouteTable("shop", 1, "tiny", "Rooms", (scenario,)))

    def rooms_of(self, name: str) -> list[int]:
        return [body["bootstrap_room"] for body in self.engines[name].seen]

    async def settled(self) -> None:
        """Nothing runs at any engine, and the gateway counts no leg."""

        def idle() -> bool:
            scheduler = self.rig.gateway.service.scheduler("tiny", {})[0]
            ours = [i.used for i in scheduler.view.instances()]
            return not any([*ours, *(x.running for x in self.engines.values())])

        await eventually(idle, "all slots are free")


@pytest.fixture
async def pairs(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pairs]:
    e.install(monkeypatch, e.announce(tmp_path, {"Rooms": "tests.support.room_engine"}))
    yield Pairs(rig)
    e.uninstall(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
async def test_both_legs_are_sent_at_once_and_meet(pairs: Pairs, stream: bool) -> None:
    await pairs.start()
    answer = await pairs.rig.complete(stream=stream)
    assert answer.status == 200
    assert answer.text == "t0 t1 t2 t3 "
    assert pairs.rooms_of("p0") == pairs.rooms_of("d0")
    prefill, decode = pairs.engines["p0"].seen[0], pairs.engines["d0"].seen[0]
    assert prefill["bootstrap_host"] == decode["bootstrap_host"] == "127.0.0.1"
    ids = [pairs.engines[n].headers[0][b"x-request-id"] for n in ("p0", "d0")]
    assert ids[0] == ids[1]
    assert answer.headers["x-pdserve-prefill"] == "p0"
    assert answer.headers["x-pdserve-decode"] == "d0"
    await pairs.settled()
    outcome = "pdserve_gateway_outcome_total"
    assert await pairs.rig.metric(outcome, scenario="chat", outcome="completed") == 1
    assert await pairs.rig.metric("pdserve_gateway_prompt_tokens_total", scenario="chat") == 7


@pytest.mark.parametrize("name", ["p0", "d0"])
@pytest.mark.parametrize("step", ["full", "draining", "500", "reset", "kv_failed"])
async def test_what_one_leg_refuses_or_loses_cuts_the_other_and_is_tried_anew(
    pairs: Pairs, name: str, step: str
) -> None:
    await pairs.start(prefills=2, decodes=2, slo=Slo(20.0, 5.0, 5.0, 0.9))
    for other in ("p0", "p1") if name == "p0" else ("d0", "d1"):
        pairs.engines[other].script = [step] if other == name else []
    # Ties are broken by chance: more requests than instances, so that the scripted one is met.
    for _ in range(6):
        answer = await pairs.rig.complete()
        assert (answer.status, answer.text) == (200, "t0 t1 t2 t3 ")
    assert pairs.engines[name].script == [], "it was asked"
    rooms = pairs.rooms_of("p0") + pairs.rooms_of("p1")
    assert len(rooms) == len(set(rooms)), "each attempt has a room of its own"
    await pairs.settled()


@pytest.mark.parametrize("prefill", ["500", "reset"])
async def test_a_prefill_that_fails_with_the_decode_that_waits_for_it_is_one_fault(
    pairs: Pairs, prefill: str
) -> None:
    """Its decode can only say that the KV did not come."""
    await pairs.start(slo=Slo(20.0, 5.0, 5.0, 0.9))
    pairs.engines["p0"].script = [prefill]
    pairs.engines["d0"].script = ["kv_failed"]
    answer = await pairs.rig.complete()
    assert (answer.status, answer.text) == (200, "t0 t1 t2 t3 ")
    await pairs.settled()


async def test_a_decode_without_kv_is_asked_last(pairs: Pairs) -> None:
    await pairs.start(decodes=2, slo=Slo(20.0, 5.0, 5.0, 0.9))
    pairs.engines["d0"].script = ["kv_failed"] * 20
    for _ in range(6):
        answer = await pairs.rig.complete()
        assert (answer.status, answer.text) == (200, "t0 t1 t2 t3 ")
    assert len(pairs.engines["d0"].script) < 20, "it was asked"
    await pairs.settled()


async def test_kv_that_does_not_come_makes_another_prefill_be_asked_first(pairs: Pairs) -> None:
    await pairs.start(prefills=2, decodes=2, slo=Slo(20.0, 5.0, 5.0, 0.9))
    d0 = pairs.engines["d0"]
    d0.script = ["kv_failed"]
    while d0.script:
        before = [len(pairs.engines[name].seen) for name in ("p0", "p1")]
        assert (await pairs.rig.complete()).status == 200
        tries = [len(pairs.engines[name].seen) for name in ("p0", "p1")]
    assert [now - then for now, then in zip(tries, before, strict=True)] == [1, 1]
    await pairs.settled()


async def test_a_mistake_of_the_client_is_reported_and_cuts_both(pairs: Pairs) -> None:
    await pairs.start()
    pairs.engines["p0"].script = ["400"]
    answer = await pairs.rig.complete()
    assert answer.status == 400
    assert b"scripted 400" in answer.body
    await pairs.settled()
    assert len(pairs.engines["p0"].seen) == 1


async def test_a_client_that_leaves_cuts_both(pairs: Pairs) -> None:
    await pairs.start()
    pairs.engines["p0"].gate = asyncio.Event()
    request = asyncio.create_task(pairs.rig.complete())
    await eventually(lambda: pairs.engines["p0"].running == 1, "the prefill computes")
    request.cancel()
    await pairs.settled()


async def test_a_decode_that_breaks_before_its_first_byte_is_repeated_once(pairs: Pairs) -> None:
    await pairs.start(decodes=2, slo=Slo(20.0, 5.0, 5.0, 0.9))
    for name in ("d0", "d1"):
        pairs.engines[name].script = ["empty"]
    answers = [await pairs.rig.complete(stream=True) for _ in range(3)]
    assert [a.status for a in answers].count(200) >= 2
    await pairs.settled()


async def test_no_decode_in_time_is_an_overload(pairs: Pairs) -> None:
    await pairs.start(slo=Slo(0.5, 0.2, 1.0, 0.9))
    pairs.engines["d0"].script = ["full"] * 500
    answer = await pairs.rig.complete()
    assert answer.status == 503
    await pairs.settled()


def kept_bytes() -> int:
    """Bytes that requests in progress hold directly."""
    gc.collect()
    parts = [o for o in gc.get_objects() if isinstance(o, RequestDriver | LegBodies)]
    assert parts
    return sum(len(v) for part in parts for v in vars(part).values() if isinstance(v, bytes))


@pytest.mark.interpreted
@pytest.mark.invariant(10)
async def test_a_stream_that_has_begun_keeps_no_body(pairs: Pairs) -> None:
    await pairs.start()
    decode = pairs.engines["d0"]
    decode.token_seconds = 3600.0
    stream = asyncio.create_task(pairs.rig.complete(stream=True, prompt="x" * 20_000))
    await eventually(lambda: decode.running == 1, "it runs")
    memory = pairs.rig.gateway.server.memory
    await eventually(lambda: memory.used == 0, "the body is not counted")
    assert kept_bytes() == 0
    stream.cancel()


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_have_rooms_of_their_own(pairs: Pairs, stream: bool) -> None:
    await pairs.start()
    answer = await pairs.rig.complete(stream=stream, prompt=["a", "b"], n=2, max_tokens=2)
    assert answer.status == 200
    rooms = pairs.rooms_of("p0")
    assert len(set(rooms)) == 4
    assert sorted(rooms) == sorted(pairs.rooms_of("d0"))
    await pairs.settled()
