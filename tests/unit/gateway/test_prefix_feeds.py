"""What prefills report of their prefix caches, in several gateways: real engines, real sockets.

Two gateways before the same two prefills, which cache few blocks. Prompts are long enough for the
usual order to have no say: who holds a prompt gets it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.engines import TOKEN, Client, EngineProcess, Group, linked_group, until
from tests.support.gateway_rig import Rig

from pdserve.engines.credentials import Credential
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.calls import HEADER_PREFILL
from pdserve.wire.prefixes import PATH_PREFIXES, wanted
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

WIDE = Slo(ttft=60.0, handoff=60.0, tpot=10.0, attainment=0.9)
ALICE, BOB = ({"authorization": f"Bearer sk-{name}"} for name in ("alice", "bob"))


def text(name: str, rules: int = 60) -> str:
    return f"{name}. " + "".join(f"Rule {n}: answer in {n} words. " for n in range(rules))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines() -> AsyncIterator[Group]:
    async with linked_group(2) as group:
        yield group


class Gateway:
    """One gateway with API keys, over all engines."""

    def __init__(self, keys: Path, group: Group) -> None:
        self._keys, self._group = keys, group
        self.rig = Rig()

    async def start(self, prefills: int = 2) -> Gateway:
        await self.rig.start(keys=self._keys, credential=Credential(TOKEN), drain_seconds=0.5)
        made = self._group.routes(4)
        one = RouteScenario("chat", WIDE, (RouteGroup(0, "r", made),), prefix_affinity=True)
        table = RouteTable("shop", 1, "reference", "Reference", (one,))
        await self.rig.source.push(table)
        await self.metric_is(names.GATEWAY_PREFIX_FEEDS, prefills)
        return self

    async def metric_is(self, name: str, value: float) -> None:
        async def reached() -> bool:
            return await self.rig.metric(name) == value

        await until(reached, f"{name} is {value}")

    async def ask(self, key: dict[str, str], prompt: str) -> tuple[str, int]:
        """Prefill and cached tokens of one request."""
        body = {"model": "reference", "temperature": 0, "max_tokens": 2, "prompt": prompt}
        answer = await self.rig.complete(key, **body)
        assert answer.status == 200, answer.body
        cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer.headers[HEADER_PREFILL.lower()], cached

    async def blocks(self) -> float:
        return await self.rig.metric(names.GATEWAY_PREFIX_BLOCKS)


@pytest_asyncio.fixture(loop_scope="module")
async def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text("sk-alice\nsk-bob\n")
    return tmp_path


@pytest_asyncio.fixture(loop_scope="module")
async def pair(engines: Group, keys: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    made = Gateway(keys, engines), Gateway(keys, engines)
    try:
        yield await made[0].start(), await made[1].start()
    finally:
        for gateway in made:
            await gateway.rig.close()


async def test_a_prompt_that_one_gateway_sent_is_in_the_index_of_the_other(
    pair: tuple[Gateway, Gateway],
) -> None:
    first, second = pair
    before = await second.blocks()
    for name in ("a", "b", "c", "d"):
        holder, cached = await first.ask(ALICE, text(name))
        assert cached == 0
        await second.metric_is(names.GATEWAY_PREFIX_BLOCKS, await first.blocks())
        for _ in range(3):
            again, cached = await second.ask(ALICE, text(name))
            assert again == holder
            assert cached > 100
    assert await second.blocks() > before
    # Another key's prompt is none of these, for neither gateway.
    expected = await second.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS)
    assert (await second.ask(BOB, text("a")))[1] == 0
    assert await second.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS) == expected


async def test_a_gateway_that_starts_has_what_prefills_hold(
    pair: tuple[Gateway, Gateway], engines: Group, keys: Path
) -> None:
    first, _ = pair
    held = {name: (await first.ask(ALICE, text(name)))[0] for name in ("e", "f", "g", "h")}
    blocks = await first.blocks()
    fresh = Gateway(keys, engines)
    try:
        await fresh.start()
        await fresh.metric_is(names.GATEWAY_PREFIX_BLOCKS, blocks)
        for name, holder in held.items():
            again, cached = await fresh.ask(ALICE, text(name))
            assert (again, cached > 100) == (holder, True)
    finally:
        await fresh.rig.close()


async def test_only_gateways_may_read_a_report(engines: Group) -> None:
    url = engines.prefills[0].url + PATH_PREFIXES
    assert (await engines.client.call("POST", url, wanted(5), token="wrong")).status == 401
    for body in (b"", b"[]", b'{"most": 0}', b'{"most": true}', b'{"most": 1e9}', b"{" * 300):
        assert (await engines.client.call("POST", url, body)).status == 400
    assert (await engines.client.call("GET", url)).status == 405


async def test_what_an_engine_gives_up_leaves_every_index(keys: Path) -> None:
    """A prefill with room for a few prompts: the index has never more than it holds."""
    client = Client()
    small = EngineProcess("prefill", ("--slots", "2", "--kv-tokens", "2048"))
    other = EngineProcess("prefill", ("--slots", "2", "--kv-tokens", "2048"))
    decode = EngineProcess("decode", ("--slots", "4"))
    gateways = []
    try:
        for engine in (small, other, decode):
            engine.start()
        for engine in (small, other, decode):
            await until(partial(client.up, engine), f"{engine.name} listens", 60)
        group = Group(client, [small, other], [decode])
        await group.push()
        gateways = [await Gateway(keys, group).start() for _ in range(2)]
        first, second = gateways
        for n in range(24):
            await first.ask(ALICE, text(f"prompt {n}"))

        async def same() -> bool:
            return await first.blocks() == await second.blocks()

        await until(same, "both have the same blocks")
        assert await second.blocks() < 24 * 3
        # The oldest prompt is gone, from the engine and from the indexes.
        expected = await second.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS)
        assert (await second.ask(ALICE, text("prompt 0")))[1] == 0
        assert await second.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS) == expected
        assert (await second.ask(ALICE, text("prompt 23")))[1] > 100
        # An engine that is started anew has nothing, and says so.
        for engine in (small, other):
            engine.kill()
        for gateway in gateways:
            await gateway.metric_is(names.GATEWAY_PREFIX_FEEDS, 0)
            assert await gateway.blocks() > 0
        for engine in (small, other):
            engine.start()
        for gateway in gateways:
            await gateway.metric_is(names.GATEWAY_PREFIX_FEEDS, 2)
            assert await gateway.blocks() == 0
    finally:
        for gateway in gateways:
            await gateway.rig.close()
        for engine in (small, other, decode):
            engine.kill()
        await client.close()
