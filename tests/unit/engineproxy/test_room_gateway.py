"""Gateway, proxies and SGLang stubs: both legs at once, meeting in a room of the prefill.

The stub is made from SGLang's public documentation; no SGLang was run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.support.gateway_rig import eventually
from tests.support.proxied_gateway import ProxiedGateway, gateway
from tests.support.proxy_rig import Instance, ProxyRig, rig
from tests.support.vllm_stub import MODEL

from pdserve.terms import Slo
from pdserve.wire.calls import PATH_DRAIN, PATH_METRICS
from pdserve.wire.names import PORT_TRANSFER

PATIENT = Slo(30.0, 10.0, 10.0, 0.9)
TEXT = "t0 t1 t2 t3 "


@dataclass
class World:
    rig: ProxyRig
    gateway: ProxiedGateway

    def of(self, role: str) -> list[Instance]:
        return [i for i in self.rig.instances.values() if i.role == role]

    def rooms(self, role: str) -> list[int]:
        return [leg["bootstrap_room"] for i in self.of(role) for leg in i.stub.seen]

    def idle(self) -> bool:
        instances = self.rig.instances.values()
        return not any(i.held or i.executing or i.stub.running for i in instances)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with rig(prefills=2, decodes=2, rooms=True) as made, gateway(MODEL, "SGLang") as front:
        await front.route((i.route() for i in made.instances.values()), PATIENT)
        yield World(made, front)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_an_answer_is_the_decodes(world: World, stream: bool, chat: bool) -> None:
    ask = world.gateway.chat if chat else world.gateway.complete
    answer = await ask(stream=stream, max_tokens=3, rid="another's", bootstrap_room=7)
    assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
    if not stream:
        assert answer.json["usage"]["completion_tokens"] == 3
    (first,) = [leg for i in world.of("prefill") for leg in i.stub.seen]
    (second,) = [leg for i in world.of("decode") for leg in i.stub.seen]
    prefill = next(i for i in world.of("prefill") if i.stub.seen)
    place = (prefill.stub.host, PORT_TRANSFER)
    for leg in (first, second):
        assert (leg["bootstrap_host"], leg["bootstrap_port"]) == place
        assert leg["bootstrap_room"] == first["bootstrap_room"] != 7
        assert "rid" not in leg
    assert first["stream"] is False
    assert second.get("stream", False) is stream
    await eventually(world.idle, "nothing is left")


async def test_one_token_is_the_decodes_too(world: World) -> None:
    answer = await world.gateway.complete(max_tokens=1)
    assert (answer.status, answer.text) == (200, "t0 ")
    await eventually(world.idle, "nothing is left")


async def test_more_requests_than_slots_are_all_served_and_none_queues_in_an_engine(
    world: World,
) -> None:
    """Refused attempts cut the leg beside them, and each attempt has a room of its own."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max([most, *(i.stub.running for i in world.rig.instances.values())])
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*(world.gateway.complete(stream=True) for _ in range(30)))
    watching.cancel()
    assert {(a.status, a.text) for a in answers} == {(200, TEXT)}
    slots = {i.config.places for i in world.rig.instances.values()}
    assert most <= max(slots), "SGLang itself refuses nothing: its proxy must"
    for role in ("prefill", "decode"):
        assert len(world.rooms(role)) == len(set(world.rooms(role)))
    await eventually(world.idle, "nothing is left")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_transfer_that_fails_is_tried_with_a_fresh_room(world: World, stream: bool) -> None:
    broken = world.rig.instances["d0"].stub
    broken.breaks_pulls = True
    while not broken.seen:
        answer = await world.gateway.complete(stream=stream)
        assert (answer.status, answer.text) == (200, TEXT)
    assert len(world.rooms("prefill")) == len(set(world.rooms("prefill")))
    await eventually(world.idle, "nothing is left")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_killed_before_its_first_token_costs_no_request(
    world: World, stream: bool
) -> None:
    d0, d1 = (world.rig.instances[n] for n in ("d0", "d1"))
    for decode in (d0, d1):
        decode.stub.token_gate = asyncio.Event()
    running = [asyncio.create_task(world.gateway.complete(stream=stream)) for _ in range(2)]
    await eventually(lambda: d0.stub.running > 0, "one runs at d0")
    await d0.stub.kill()
    assert d1.stub.token_gate is not None
    d1.stub.token_gate.set()
    answers = await asyncio.gather(*running)
    assert {(a.status, a.text) for a in answers} == {(200, TEXT)}


async def test_a_prefill_killed_while_it_computes_costs_no_request(world: World) -> None:
    p0, p1 = (world.rig.instances[n] for n in ("p0", "p1"))
    for prefill in (p0, p1):
        prefill.stub.token_gate = asyncio.Event()
    running = [asyncio.create_task(world.gateway.complete()) for _ in range(2)]
    await eventually(lambda: p0.stub.running > 0, "one runs at p0")
    await p0.stub.kill()
    assert p1.stub.token_gate is not None
    p1.stub.token_gate.set()
    answers = await asyncio.gather(*running)
    assert {(a.status, a.text) for a in answers} == {(200, TEXT)}


@pytest.mark.parametrize("gated", ["prefill", "decode"])
async def test_a_client_that_leaves_aborts_both_sides(world: World, gated: str) -> None:
    for instance in world.of(gated):
        instance.stub.token_gate = asyncio.Event()
    running = asyncio.create_task(world.gateway.complete(stream=True))
    await eventually(lambda: any(i.stub.running for i in world.of(gated)), "it runs")
    running.cancel()
    await eventually(world.idle, "everything is free")


async def test_a_mistake_of_the_client_is_the_engines_word(world: World) -> None:
    raw = b"HTTP/1.1 400 X\r\ncontent-length: 33\r\n\r\n" + b'{"error":{"message":"too long!"}}'
    for instance in world.of("prefill"):
        instance.stub.raw = raw
    answer = await world.gateway.complete()
    assert (answer.status, answer.json["error"]["message"]) == (400, "too long!")
    await eventually(world.idle, "its decode leg was cut")


async def test_draining_instances_get_nothing_new_and_end_what_runs(world: World) -> None:
    for name in ("d0", "d1"):
        world.rig.instances[name].stub.token_gate = asyncio.Event()
    running = [asyncio.create_task(world.gateway.complete(stream=True)) for _ in range(2)]
    await eventually(lambda: world.rig.instances["d0"].executing > 0, "one runs at d0")
    drained = world.rig.instances["d0"]
    report = (await drained.ask("POST", PATH_DRAIN)).json
    assert report["executing"] > 0
    seen = len(drained.stub.seen)
    for instance in world.of("decode"):
        assert instance.stub.token_gate is not None
        instance.stub.token_gate.set()
    assert {a.text for a in await asyncio.gather(*running)} == {TEXT}
    for _ in range(4):
        assert (await world.gateway.complete()).text == TEXT
    # A leg that runs beside a refused one reaches no engine.
    assert len(drained.stub.seen) == seen
    report = (await drained.ask("POST", PATH_DRAIN)).json
    assert set(report.values()) == {0}


async def test_a_rollout_under_traffic_fails_no_request(world: World) -> None:
    """A second group takes over while requests run; those of the first end where they began."""
    async with rig(rooms=True) as newer:
        for instance in world.of("decode"):
            instance.stub.token_seconds = 0.01
        running = [asyncio.create_task(world.gateway.complete(stream=True)) for _ in range(3)]
        await eventually(lambda: any(i.executing for i in world.of("decode")), "requests run")
        await world.gateway.route((i.route() for i in newer.instances.values()), PATIENT)
        after = [await world.gateway.complete() for _ in range(4)]
        assert {a.text for a in after} == {TEXT}
        assert len(newer.instances["d0"].stub.seen) >= 4
        assert {(a.status, a.text) for a in await asyncio.gather(*running)} == {(200, TEXT)}


async def test_series_of_the_ratio_loop_without_transfers_that_it_cannot_see(world: World) -> None:
    assert (await world.gateway.complete(max_tokens=4)).status == 200
    prefill = next(i for i in world.of("prefill") if i.stub.seen)
    text = (await prefill.ask("GET", PATH_METRICS)).body.decode()
    assert "pdserve_engine_prefill_requests_total 1" in text
    assert "pdserve_engine_prefill_uncached_tokens_total" in text or "tokens_total 5" in text
    assert "kv_wait" not in text and "kv_transfer" not in text
