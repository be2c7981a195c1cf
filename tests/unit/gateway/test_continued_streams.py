"""A stream whose decode is lost goes on from another, with real engines in exact mode.

The client's events are the same as without the loss, their text, logprobs and usage included. A
proxy before each decode cuts its reply after so many events: the engine behind it is lost for
that request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.support.continued_world import ContinuedWorld, continued_world, essence

from pdserve.wire.calls import PATH_CHAT, PATH_COMPLETIONS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

TOKENS = 66
ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy, with logprobs": (
        PATH_COMPLETIONS,
        {"prompt": "Return a new list", "temperature": 0, "logprobs": 2, "ignore_eos": True},
    ),
    "sampled": (
        PATH_COMPLETIONS,
        {"prompt": "x = [1, 2,", "temperature": 0.9, "seed": 7, "ignore_eos": True},
    ),
    "chat": (
        PATH_CHAT,
        {
            "messages": [{"role": "user", "content": "Permission"}],
            "temperature": 0.8, "seed": 3, "ignore_eos": True,
        },
    ),
    "chat with logprobs and a stop string": (
        PATH_CHAT,
        {
            "messages": [{"role": "user", "content": "The names of all modules"}],
            "temperature": 0.7, "seed": 11, "logprobs": True, "stop": ["zzzz", "the end"],
            "min_tokens": 60, "ignore_eos": True,
        },
    ),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[ContinuedWorld]:
    async with continued_world() as made:
        yield made


async def stream(world: ContinuedWorld, ask: str, *cuts: int, **more: Any) -> list[Any]:
    path, fields = ASKS[ask]
    return await world.stream(path, {"max_tokens": TOKENS, **fields, **more}, *cuts)


@pytest.mark.parametrize("ask", ASKS)
async def test_a_stream_cut_after_any_token_is_as_without_the_cut(
    world: ContinuedWorld, ask: str
) -> None:
    want = essence(await stream(world, ask))
    last = len(want["text"]) - 1
    assert last > 40
    cuts = [*range(1 + 2 * list(ASKS).index(ask), last, 8), last]
    before = await world.continued()
    for cut in cuts:
        assert essence(await stream(world, ask, cut)) == want, cut
    assert await world.continued() - before == len(cuts)


async def test_a_stream_goes_on_whatever_its_next_token_shows(world: ContinuedWorld) -> None:
    """A token without text, here the model's end of text, has no event of its own."""
    want = await stream(world, "sampled", logprobs=0)
    texts = [e["choices"][0]["text"] for e in want[:-2]]
    silent = [number for number, text in enumerate(texts) if number and not text]
    assert silent, "choose another seed"
    plain = essence(await stream(world, "sampled"))
    for cut in silent:
        # Of the tokens before it, each has an event.
        shown = cut - sum(number < cut for number in silent)
        assert essence(await stream(world, "sampled", shown)) == plain


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_a_stream_cut_after_its_last_token_gets_its_end(
    world: ContinuedWorld, missing: int
) -> None:
    """The event with the last token, the usage, the end mark: the engine writes them together."""
    want = await stream(world, "greedy, with logprobs")
    before = await world.continued()
    got = await stream(world, "greedy, with logprobs", len(want) - missing)
    assert essence(got) == essence(want)
    assert await world.continued() == before


async def test_choices_of_one_answer_go_on_each_by_itself(world: ContinuedWorld) -> None:
    want = joined(await stream(world, "sampled", n=2, max_tokens=24))
    assert joined(await stream(world, "sampled", 7, 9, n=2, max_tokens=24)) == want


async def test_a_stream_that_loses_two_decodes_ends(world: ContinuedWorld) -> None:
    """It may be what breaks them: a third one must not find out."""
    before = await world.continued()
    events = await stream(world, "sampled", 5, 3)
    assert [e["error"]["code"] for e in events if "error" in e] == ["upstream_error"]
    assert len([e for e in events if e.get("choices")]) == 8
    assert await world.continued() - before == 1
    want = essence(await stream(world, "chat"))
    assert essence(await stream(world, "chat", 9)) == want, "the next one goes on"


async def test_a_prompt_found_in_the_prefix_cache_is_counted_once(world: ContinuedWorld) -> None:
    """The first prefill found less of it than the second one finds."""
    prompt = [5 + (i * 37) % 2000 for i in range(200)]
    want = essence(await stream(world, "greedy, with logprobs", prompt=[*prompt, 77]))
    got = essence(await stream(world, "greedy, with logprobs", 12, prompt=[*prompt[1:], 5, 77]))
    assert got["usage"] == want["usage"]
    assert want["usage"][0]["prompt_tokens_details"] == {"cached_tokens": 0}


def joined(events: list[Any]) -> dict[Any, Any]:
    """Text and end by choice, and the usage; events of several choices come in any order."""
    assert not [e for e in events if "error" in e], events[-1]
    found: dict[Any, Any] = {}
    for event in events[:-1]:
        found["usage"] = event["usage"]
        for choice in event["choices"]:
            index = choice["index"]
            found[index] = found.get(index, "") + choice["text"]
            if choice["finish_reason"]:
                found[index, "reason"] = choice["finish_reason"]
    return found
