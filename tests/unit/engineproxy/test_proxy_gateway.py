"""Gateway, two proxies and two vLLM stubs: the whole path of a request of type vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.support.gateway_rig import eventually
from tests.support.proxied_gateway import ProxiedGateway, gateway
from tests.support.proxy_rig import ProxyRig, rig
from tests.support.vllm_stub import MODEL


@dataclass
class World:
    rig: ProxyRig
    gateway: ProxiedGateway

    def idle(self) -> bool:
        """Nothing runs, and no KV is held, at proxies and engines."""
        instances = self.rig.instances.values()
        return not any(i.held or i.executing or i.stub.running or i.stub.held for i in instances)


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with rig(prefills=2, decodes=2) as made, gateway(MODEL) as front:
        await front.route(i.route() for i in made.instances.values())
        yield World(made, front)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_an_answer_is_the_decodes(world: World, stream: bool, chat: bool) -> None:
    ask = world.gateway.chat if chat else world.gateway.complete
    answer = await ask(stream=stream, max_tokens=3)
    assert (answer.status, answer.text) == (200, "t0 t1 t2 ")
    if not stream:
        assert answer.json["usage"]["completion_tokens"] == 3
    assert "kv_transfer_params" not in answer.body.decode()
    prefill = next(
        i.stub for i in world.rig.instances.values() if i.role == "prefill" and i.stub.seen
    )
    (leg,) = prefill.seen
    assert (leg["max_tokens"], leg["stream"]) == (1, False)
    await eventually(world.idle, "nothing is left")


async def test_one_token_needs_no_decode(world: World) -> None:
    """Its KV is freed, although no decode pulls it."""
    answer = await world.gateway.complete(max_tokens=1)
    assert (answer.status, answer.text) == (200, "t0 ")
    decodes = [i.stub for i in world.rig.instances.values() if i.role == "decode"]
    assert not any(stub.seen for stub in decodes)
    await eventually(world.idle, "its KV is freed")


async def test_more_requests_than_slots_are_all_served_and_none_queues_in_an_engine(
    world: World,
) -> None:
    answers = await asyncio.gather(*(world.gateway.complete(stream=True) for _ in range(40)))
    assert {(a.status, a.text) for a in answers} == {(200, "t0 t1 t2 t3 ")}
    for instance in world.rig.instances.values():
        assert instance.stub.events["refused 503"] == 0
    await eventually(world.idle, "nothing is left")


async def test_engines_with_a_tighter_bound_than_their_proxy_cost_no_request(
    world: World,
) -> None:
    """Their refusals free KV: it is computed again, and the next requests do not reach them."""
    d0 = world.rig.instances["d0"].stub
    d0.max_queued = 0
    while not d0.events["refused 503"]:
        assert (await world.gateway.complete(stream=True)).text == "t0 t1 t2 t3 "
    await eventually(world.idle, "nothing is left")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_killed_before_its_first_token_costs_no_request(
    world: World, stream: bool
) -> None:
    d0 = world.rig.instances["d0"]
    for decode in ("d0", "d1"):
        world.rig.instances[decode].stub.token_gate = asyncio.Event()
    running = [asyncio.create_task(world.gateway.complete(stream=stream)) for _ in range(2)]
    await eventually(lambda: d0.stub.running > 0, "one runs at d0")
    await d0.stub.kill()
    gate = world.rig.instances["d1"].stub.token_gate
    assert gate is not None
    gate.set()
    answers = await asyncio.gather(*running)
    assert {(a.status, a.text) for a in answers} == {(200, "t0 t1 t2 t3 ")}


async def test_a_client_that_leaves_frees_everything(world: World) -> None:
    for name in ("d0", "d1"):
        world.rig.instances[name].stub.token_gate = asyncio.Event()
    running = asyncio.create_task(world.gateway.complete(stream=True))
    stubs = [world.rig.instances[n].stub for n in ("d0", "d1")]
    await eventually(lambda: any(s.running for s in stubs), "a decode runs")
    running.cancel()
    await eventually(world.idle, "everything is free")
    assert sum(s.events["aborted"] for s in stubs) == 1


async def test_a_client_that_leaves_during_prefill_frees_everything(world: World) -> None:
    stubs = [world.rig.instances[n].stub for n in ("p0", "p1")]
    for stub in stubs:
        stub.token_gate = asyncio.Event()
    running = asyncio.create_task(world.gateway.complete(stream=True))
    await eventually(lambda: any(s.running for s in stubs), "a prefill runs")
    running.cancel()
    await eventually(world.idle, "everything is free")


async def test_draining_instances_get_nothing_new(world: World) -> None:
    for name in ("p0", "d1"):
        await world.rig.instances[name].ask("POST", "/pdserve/v1/drain")
    seen = {n: len(i.stub.seen) for n, i in world.rig.instances.items()}
    for _ in range(6):
        assert (await world.gateway.complete()).status == 200
    grown = {n: len(i.stub.seen) - seen[n] for n, i in world.rig.instances.items()}
    assert grown == {"p0": 0, "p1": 6, "d0": 6, "d1": 0}


async def test_a_clients_mistake_is_answered_by_the_engine(world: World) -> None:
    answer = await world.gateway.complete(temperature=0.5, seed=1)
    assert answer.status == 200
    world.rig.instances["p0"].stub.raw = world.rig.instances["p1"].stub.raw = (
        b"HTTP/1.1 400 X\r\ncontent-length: 33\r\n\r\n" + b'{"error":{"message":"too long!"}}'
    )
    answer = await world.gateway.complete()
    assert (answer.status, answer.json["error"]["message"]) == (400, "too long!")


@pytest.mark.parametrize("type_name", ["vLLM-Ascend", "MindIE"])
async def test_a_connector_with_other_parameters_and_no_release(type_name: str) -> None:
    """Parameters pass unchanged; what no decode pulls is freed by the end of its lease alone."""
    more = {
        "remote_pcp_size": 1, "remote_dcp_size": 1, "remote_ptp_size": 8, "remote_block_size": 128,
        "remote_multi_nodes_meta_mapping": {"0": {"host": "127.0.0.1"}}, "num_prompt_blocks": 1,
        "last_token_id": 5,
    }  # fmt: skip
    async with (
        rig(release_by_refusal=False, lease_seconds=0.5) as made,
        gateway(MODEL, type_name) as front,
    ):
        p0, d0 = made.instances["p0"], made.instances["d0"]
        p0.stub.more_params = more
        await front.route(i.route() for i in made.instances.values())
        answer = await front.complete(stream=True)
        assert (answer.status, answer.text) == (200, "t0 t1 t2 t3 ")
        assert d0.stub.seen[0]["kv_transfer_params"].items() >= more.items()
        assert (await front.complete(max_tokens=1)).text == "t0 "
        await eventually(lambda: p0.held == 0, "the lease has ended")
        assert d0.stub.events["refused 404"] == 0, "no engine was asked to drop it"
