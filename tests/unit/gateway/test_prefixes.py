"""Prompts and their prefixes through a gateway, over real engines: order, isolation, figures.

Three prefills and one decode of the reference engine; every request is sent after the one before,
so that the usual order would take any of the three.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.support.engines import TOKEN, Group, linked_group, until
from tests.support.gateway_rig import Rig

from pdserve.engines.credentials import Credential
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.calls import HEADER_PREFILL
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

WIDE = Slo(ttft=60.0, handoff=60.0, tpot=10.0, attainment=0.9)
TEXT = "".join(f"Rule {n}: answer in {n} words. " for n in range(40))
ALICE, BOB = ({"authorization": f"Bearer sk-{name}"} for name in ("alice", "bob"))


class World:
    """A gateway with API keys before one P/D group."""

    def __init__(self, rig: Rig, group: Group) -> None:
        self.rig, self._group = rig, group

    async def route(self, *others: str, prefix_affinity: bool = True) -> None:
        """Publish the group under scenario `chat`, and once more under each other name."""
        self.rig.version += 1
        made = self._group.routes(4)
        groups = (RouteGroup(0, "r", made),)
        every = tuple(
            RouteScenario(name, WIDE, groups, models=models, prefix_affinity=prefix_affinity)
            for name, models in (("chat", ()), *((n, (n,)) for n in others))
        )
        table = RouteTable("shop", self.rig.version, "reference", "Reference", every)
        await self.rig.source.push(table)

    async def known(self, scenario: str = "chat") -> float:
        """Blocks in the index, once all prefills have reported what they have of other tests."""
        metric = self.rig.metric

        async def complete() -> bool:
            return await metric(names.GATEWAY_PREFIX_FEEDS, scenario=scenario) == 3

        await until(complete, "the prefills report")
        found, before = await metric(names.GATEWAY_PREFIX_BLOCKS, scenario=scenario), -1.0
        while found != before:  # a report counts from its first line on
            await asyncio.sleep(0.3)
            before = found
            found = await metric(names.GATEWAY_PREFIX_BLOCKS, scenario=scenario)
        return found

    async def ask(self, key: dict[str, str], prompt: Any, **fields: Any) -> tuple[str, int, str]:
        """Prefill, cached tokens by the client's usage, and text of one request."""
        body = {"model": "reference", "temperature": 0, "max_tokens": 3, "prompt": prompt} | fields
        answer = await self.rig.complete(key, **body)
        assert answer.status == 200, answer.body
        cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        return answer.headers[HEADER_PREFILL.lower()], cached, answer.text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines() -> AsyncIterator[Group]:
    async with linked_group(3) as group:
        yield group


@pytest_asyncio.fixture(loop_scope="module")
async def world(engines: Group, tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "keys").write_text("sk-alice\nsk-bob\n")
    rig = Rig()
    await rig.start(keys=tmp_path, credential=Credential(TOKEN))
    made = World(rig, engines)
    await made.route()
    yield made
    await rig.close()


@pytest.mark.parametrize("form", ["text", "ids", "list of one"])
async def test_later_prompts_go_where_the_first_went_and_answers_stay(
    world: World, form: str
) -> None:
    prompt: Any = {"text": TEXT, "ids": [n % 90 for n in range(300)], "list of one": ["!" + TEXT]}[
        form
    ]
    before = await world.known()
    first = await world.ask(ALICE, prompt)
    assert first[1] == 0
    for _ in range(6):
        prefill, cached, text = await world.ask(ALICE, prompt)
        assert (prefill, text) == (first[0], first[2])
        assert cached > 200
    metric = world.rig.metric
    assert await metric(names.GATEWAY_CACHED_TOKENS) == 6 * cached
    assert await metric(names.GATEWAY_EXPECTED_CACHED_TOKENS) >= 0.7 * 6 * cached
    assert await metric(names.GATEWAY_PREFIX_BLOCKS) - before in (2, 4)


async def test_one_keys_prompts_show_in_nothing_that_another_key_sees(world: World) -> None:
    """The counts of cached tokens, of the engine and of our index, are those of a new prompt."""
    prompt = "For one's eyes. " + TEXT
    for _ in range(4):
        await world.ask(ALICE, prompt)
    expected = await world.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS)
    others = [await world.ask(BOB, prompt, max_tokens=n) for n in (1, 2)]
    assert others[0][1] == 0
    own = others[1][1]
    assert own > 0
    assert await world.rig.metric(names.GATEWAY_EXPECTED_CACHED_TOKENS) <= expected + own
    # A client cannot choose its way into another's blocks either.
    assert (await world.ask(BOB, prompt, cache_salt="x"))[1] == 0
    salted = [await world.ask(ALICE, prompt, cache_salt="x") for _ in range(2)]
    assert [cached > 0 for _, cached, _ in salted] == [False, True]


@pytest.mark.parametrize("salt", [5, ["a"], {}, True])
async def test_a_salt_that_is_no_text_is_refused_by_the_engine(world: World, salt: object) -> None:
    answer = await world.rig.complete(ALICE, model="reference", prompt=TEXT, cache_salt=salt)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "cache_salt"


async def test_without_affinity_prompts_go_anywhere(world: World) -> None:
    await world.route(prefix_affinity=False)
    prompt = "Anywhere. " + TEXT
    taken = {(await world.ask(ALICE, prompt))[0] for _ in range(24)}
    assert len(taken) > 1
    assert await world.rig.metric(names.GATEWAY_PREFIX_BLOCKS) == 0
    await world.route()
    taken = {(await world.ask(ALICE, prompt))[0] for _ in range(6)}
    assert len(taken) == 1


async def test_an_index_is_shared_between_scenarios_of_a_process(world: World) -> None:
    """With more scenarios each has less room; blocks that fit stay, and each has the reports of its
    prefills: here the same ones.
    """
    await world.known()  # blocks are named to prefills that report, which takes a moment
    first = await world.ask(ALICE, "Kept. " + TEXT)
    blocks = await world.known()
    assert blocks > 0
    await world.route("code")
    assert await world.rig.metric(names.GATEWAY_PREFIX_BLOCKS, scenario="chat") == blocks

    async def told() -> bool:
        return await world.known("code") == blocks

    await until(told, "the prefills have reported to the other scenario too")
    assert (await world.ask(ALICE, "Kept. " + TEXT))[0] == first[0]
    await world.route()
