"""vLLM's KV events to gateways: publisher stub, proxies, two gateways; all over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from tests.support.gateway_rig import Answer, eventually, metric_values
from tests.support.proxied_gateway import ProxiedGateway, gateway
from tests.support.proxy_rig import Instance, ProxyRig, ask
from tests.support.vllm_events import CachingVllmStub, EventsPublisher, free_address
from tests.support.vllm_stub import MODEL

from pdserve.engines.cached_digests import CachedDigests
from pdserve.wire import metrics as names
from pdserve.wire.calls import HEADER_PREFILL
from pdserve.wire.prefixes import PATH_PREFIXES, wanted


def text(name: str) -> str:
    return f"{name}. " + "".join(f"Rule {n}: answer in {n} words. " for n in range(60))


@dataclass
class Prefill:
    """A caching stub, its publisher, and the proxy before it."""

    instance: Instance
    stub: CachingVllmStub
    endpoints: tuple[str, str]
    publisher: EventsPublisher

    @property
    def cached(self) -> CachedDigests[bytes | int]:
        chains = self.instance.context.chains
        assert chains is not None
        return chains.cached

    async def restart_publisher(self) -> None:
        """As the engine's container starts anew: an empty cache, and numbers from 0 on."""
        await self.publisher.close()
        self.stub.cache.clear()
        self.publisher = self.stub.publisher = EventsPublisher(*self.endpoints)


@dataclass
class World:
    rig: ProxyRig
    prefills: list[Prefill]
    gateways: list[ProxiedGateway]

    async def route(self) -> None:
        for front in self.gateways:
            routes = [i.route() for i in self.rig.instances.values()]
            await front.route(routes, prefix_affinity=True)
        for number in range(len(self.gateways)):
            await self.metric_is(number, names.GATEWAY_PREFIX_FEEDS, len(self.prefills))

    async def metric(self, number: int, name: str) -> float:
        answer = await ask(self.gateways[number].port, "GET", "/metrics")
        return sum(metric_values(answer.body.decode(), name, {}))

    async def metric_is(self, number: int, name: str, value: float) -> None:
        while await self.metric(number, name) != value:
            pass

    async def agrees(self, number: int) -> None:
        """Wait until a gateway's index has what all prefills report."""
        while await self.metric(number, names.GATEWAY_PREFIX_BLOCKS) != self.known:
            pass

    async def ask(self, number: int, prompt: str) -> tuple[str, int]:
        """Prefill and cached tokens of a request to one gateway."""
        answer: Answer = await self.gateways[number].complete(
            prompt=prompt, max_tokens=2, stream=True
        )
        assert answer.status == 200, answer.body
        name = answer.headers[HEADER_PREFILL.lower()]
        stub = next(p.stub for p in self.prefills if p.instance.name == name)
        return name, len(stub.cache)

    @property
    def known(self) -> int:
        """Digests that all prefills report."""
        return sum(len(p.cached) for p in self.prefills)

    def holder(self, prompt: str) -> Prefill:
        return next(p for p in self.prefills if any(s["prompt"] == prompt for s in p.stub.seen))


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    rig, prefills = ProxyRig(rooms=False), []
    try:
        for n in range(2):
            endpoints = free_address(), free_address()
            instance = await rig.add(
                "prefill", f"p{n}", kind=CachingVllmStub, slots=4,
                kv_events=endpoints[0], kv_events_replay=endpoints[1],
                kv_events_arguments="vllm_xargs",
            )  # fmt: skip
            stub = instance.stub
            assert isinstance(stub, CachingVllmStub)
            stub.publisher = EventsPublisher(*endpoints)
            prefills.append(Prefill(instance, stub, endpoints, stub.publisher))
        await rig.add("decode", "d0", slots=4)
        await rig.link()
        async with gateway(MODEL) as first, gateway(MODEL) as second:
            made = World(rig, prefills, [first, second])
            await made.route()
            for prefill in prefills:
                # What a publisher sends before its peer has connected is lost.
                await prefill.publisher.publish(lost=True)
                while not prefill.publisher.replays:
                    await prefill.publisher.publish()
            yield made
    finally:
        for prefill in prefills:
            await prefill.publisher.close()
        await rig.close()


async def test_what_one_gateway_sent_is_in_the_index_of_the_other(world: World) -> None:
    for name in ("a", "b", "c", "d"):
        before = world.known
        holder, _ = await world.ask(0, text(name))
        await eventually(lambda b=before: world.known == b + 3, "the blocks are known")  # type: ignore[misc]
        await world.agrees(1)
        for _ in range(3):
            assert (await world.ask(1, text(name)))[0] == holder
    found = await world.metric(1, names.GATEWAY_CACHED_TOKENS)
    expected = await world.metric(1, names.GATEWAY_EXPECTED_CACHED_TOKENS)
    assert found > 0
    assert expected == pytest.approx(found, rel=0.3)


async def test_what_vllm_gives_up_leaves_the_indexes(world: World) -> None:
    for prefill in world.prefills:
        prefill.stub.room = 250
    for n in range(12):
        await world.ask(n % 2, text(f"prompt {n}"))
    blocks = sum(len(p.stub.cache) for p in world.prefills)
    assert blocks == 500
    # A gateway's block has 32 blocks of the stub.
    await eventually(lambda: world.known <= 500 // 32 + 2, "evictions are known")
    assert world.known > 4
    for number in range(2):
        await world.agrees(number)


async def test_lost_events_are_replayed(world: World) -> None:
    await world.ask(0, text("a"))
    prefill = world.holder(text("a"))
    await eventually(lambda: len(prefill.cached) >= 3, "the blocks are known")
    known, replays = len(prefill.cached), prefill.publisher.replays
    last = next(iter(prefill.stub.cache))
    removed = {"type": "BlockRemoved", "block_hashes": [last], "medium": "GPU", "group_idx": 0}
    for block in list(prefill.stub.cache)[:40]:
        await prefill.publisher.publish({**removed, "block_hashes": [block]}, lost=True)
    await prefill.publisher.publish(removed)
    await eventually(lambda: len(prefill.cached) < known, "what was lost is replayed")
    assert prefill.publisher.replays == replays + 1
    assert len(prefill.cached) > 0


async def test_events_that_cannot_be_had_again_empty_the_index(world: World) -> None:
    await world.ask(0, text("a"))
    prefill = world.holder(text("a"))
    await eventually(lambda: len(prefill.cached) >= 3, "the blocks are known")
    await prefill.publisher.publish(lost=True)
    prefill.publisher.sent.clear()
    await prefill.publisher.publish()
    await eventually(lambda: len(prefill.cached) == 0, "nothing is known any more")
    await world.ask(1, text("a"))
    again = world.holder(text("a"))
    await eventually(lambda: len(again.cached) >= 3, "found blocks are reported, too")


async def test_an_engine_that_starts_anew_has_nothing(world: World) -> None:
    await world.ask(0, text("a"))
    prefill = world.holder(text("a"))
    await eventually(lambda: len(prefill.cached) >= 3, "the blocks are known")
    await prefill.restart_publisher()
    while len(prefill.cached):
        await prefill.publisher.publish()  # until the new publisher has connected
    for number in range(2):
        await world.agrees(number)


async def test_nonsense_empties_the_index_and_reading_goes_on(world: World) -> None:
    await world.ask(0, text("a"))
    prefill = world.holder(text("a"))
    await eventually(lambda: len(prefill.cached) >= 3, "the blocks are known")
    for raw in (b"", b"\xc1", b"\x91" * 5000):
        await prefill.publisher.publish_raw(raw)
    await eventually(lambda: len(prefill.cached) == 0, "nothing is known any more")
    await world.ask(0, text("a"))
    again = world.holder(text("a"))
    await eventually(lambda: len(again.cached) >= 3, "events are read on")


async def test_a_vllm_without_sessions_leaves_the_gateways_own_history(world: World) -> None:
    for prefill in world.prefills:
        prefill.stub.reports = False
    holders = {await world.ask(0, text("a")) for _ in range(4)}
    assert len({name for name, _ in holders}) == 1
    assert world.known == 0


async def test_only_gateways_may_read_and_other_engines_report_nothing(world: World) -> None:
    port = world.prefills[0].instance.port
    host = world.prefills[0].stub.host
    wrong = {"authorization": "Bearer wrong"}
    assert (await ask(port, "POST", PATH_PREFIXES, wanted(5), wrong, host)).status == 401
    assert (await ask(port, "POST", PATH_PREFIXES, b"{}", host=host)).status == 400
    decode = world.rig.instances["d0"]
    answer = await ask(decode.port, "POST", PATH_PREFIXES, wanted(5), host=decode.stub.host)
    assert answer.status == 404
