"""Prompts that real decodes compute themselves: answers are those of the way through a prefill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.support.continued_world import ContinuedWorld, continued_world, essence

from pdserve.wire.calls import PATH_CHAT, PATH_COMPLETIONS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ASKS = (
    (PATH_COMPLETIONS, {"prompt": "Return a new list", "temperature": 0, "logprobs": 2}),
    (PATH_COMPLETIONS, {"prompt": "x = [1, 2," * 60, "temperature": 0.9, "seed": 7}),
    (
        PATH_CHAT,
        {"messages": [{"role": "user", "content": "Names"}], "temperature": 0.8, "seed": 3},
    ),
)
TOKENS = 24


def shown(events: list[Any]) -> dict[str, Any]:
    """What a client gets, beside how much of its prompt was in a cache."""
    found = essence(events)
    return found | {"usage": [u["total_tokens"] for u in found["usage"]]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def split() -> AsyncIterator[ContinuedWorld]:
    async with continued_world() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def local() -> AsyncIterator[ContinuedWorld]:
    async with continued_world(local_prefill="Fixed", local_prefill_tokens=2000) as made:
        yield made


async def test_answers_are_equal_and_streams_go_on(
    split: ContinuedWorld, local: ContinuedWorld
) -> None:
    before = await local.local()
    for path, ask in ASKS:
        body = {"max_tokens": TOKENS, "ignore_eos": True, **ask}
        want = shown(await split.stream(path, body))
        assert shown(await local.stream(path, body)) == want
        whole, alike = await split.whole(path, body), await local.whole(path, body)
        assert alike["choices"] == whole["choices"]
        assert alike["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
        for cut in (1, 7, len(want["text"])):
            assert shown(await local.stream(path, body, cut)) == want, cut
    assert await local.local() - before == 5 * len(ASKS)
    assert await local.local("refused") == 0
    assert await split.local() == 0


async def test_no_way_ends_an_answer_before_its_least_tokens(
    split: ContinuedWorld, local: ContinuedWorld
) -> None:
    """A prefill computes one token, which may have a word that ends the answer later."""
    ask = {"messages": [{"role": "user", "content": "Names"}], "temperature": 0, "max_tokens": 6}
    first = (await split.whole(PATH_CHAT, {**ask, "max_tokens": 1}))["choices"][0]["message"]
    body = {**ask, "min_tokens": 3, "stop": first["content"][-1]}
    found = [await world.whole(PATH_CHAT, body) for world in (split, local)]
    assert found[0]["choices"] == found[1]["choices"]
    assert found[0]["usage"]["completion_tokens"] >= 3
    want = shown(await local.stream(PATH_CHAT, body))
    assert shown(await split.stream(PATH_CHAT, body)) == want
    assert shown(await split.stream(PATH_CHAT, body, 1)) == want


async def test_prompts_that_decodes_compute_change_no_answer_beside_them(
    split: ContinuedWorld, local: ContinuedWorld
) -> None:
    """Sixteen at once, of all lengths: some run, some have their prompts computed in chunks."""
    bodies = [
        {
            "prompt": [5 + (i * 37 + n) % 2000 for i in range(1 + 60 * n)],
            "max_tokens": 20, "temperature": 0, "ignore_eos": True,
        }
        for n in range(16)
    ]  # fmt: skip

    async def answers(world: ContinuedWorld) -> list[object]:
        found = await asyncio.gather(*(world.whole(PATH_COMPLETIONS, b) for b in bodies))
        return [(a["choices"], a["usage"]["total_tokens"]) for a in found]

    assert await answers(local) == await answers(split)
    assert await local.local() > len(bodies) // 4
