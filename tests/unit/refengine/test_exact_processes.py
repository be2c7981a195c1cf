"""Exact mode end to end: P/D over two real processes gives the tokens of one aggregated process.

Prompts of many lengths (block and tile borders included), greedy and seeded sampling, run
concurrently so that batches mix, with different slots, chunk sizes and with the prefix cache on
and off. Logprobs are compared too: they show a difference long before a token flips.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.engines import Client, EngineProcess

PATH = "/v1/completions"
TEXT = (
    "Return a new list of the names of all modules that the loader can find on the given path, "
    "or raise an error when the path does not exist. The order of the result is not defined. "
) * 12


def bodies() -> list[dict[str, Any]]:
    made = []
    for number, length in enumerate((1, 5, 30, 31, 32, 33, 63, 64, 65, 100, 127, 200, 300, 420)):
        made.append(
            {
                "model": "reference",
                "prompt": [7 + number, *[(i * 31 + number // 4) % 2000 + 5 for i in range(length)]],
                "max_tokens": 12 + number,
                "temperature": 0 if number % 2 else 0.9,
                "top_p": 0.95,
                "seed": 1000 + number,
                "ignore_eos": True,
                "logprobs": 1,
            }
        )
    texts = [
        {
            "model": "reference",
            "prompt": TEXT[: 700 + 300 * number],
            "max_tokens": 30,
            "temperature": 0.7 * (number % 2),
            "seed": number,
            "logprobs": 1,
        }
        for number in range(4)
    ]
    return made + texts


def essence(reply: Any) -> Any:
    choice = reply.body["choices"][0]
    return (
        choice["text"],
        choice["finish_reason"],
        choice["logprobs"],
        reply.body["usage"]["completion_tokens"],
    )


async def wanted(client: Client, aggregated: EngineProcess) -> list[Any]:
    """One request at a time, whole prompts, no prefix cache: the plainest computation."""
    return [essence(await client.call("POST", aggregated.url + PATH, body)) for body in bodies()]


CASES = {
    "batch of one": (("--slots", "1"), ("--slots", "1", "--prefetch", "0")),
    "wide batches": (("--slots", "16"), ("--slots", "12", "--prefetch", "4")),
    "small chunks": (
        ("--slots", "6", "--chunk-tokens", "37", "--max-batch-tokens", "90"),
        (
            "--slots",
            "3",
        ),
    ),
    "no prefix cache": (("--slots", "4", "--no-prefix-cache"), ("--slots", "5")),
}


@pytest.mark.parametrize("case", CASES)
async def test_pd_equals_aggregated(
    case: str, client: Client, start: Any, start_group: Any
) -> None:
    prefill, decode = CASES[case]
    plain = await start(EngineProcess("both", ("--no-prefix-cache", "--chunk-tokens", "4096")))
    want = await wanted(client, plain)
    group = await start_group(prefill, decode)
    for _ in range(2):  # The second round finds its prefixes in the cache.
        got = await asyncio.gather(*(group.generate(PATH, body) for body in bodies()))
        assert [essence(reply) for reply in got] == want
    cached = [r.body["usage"]["prompt_tokens_details"]["cached_tokens"] for r in got]
    assert any(cached) == ("--no-prefix-cache" not in prefill)


async def test_aggregated_batching_does_not_change_tokens(client: Client, start: Any) -> None:
    plain = await start(EngineProcess("both", ("--no-prefix-cache",)))
    busy = await start(EngineProcess("both", ("--slots", "32", "--chunk-tokens", "24")))
    want = await wanted(client, plain)
    got = await asyncio.gather(*(client.call("POST", busy.url + PATH, body) for body in bodies()))
    assert [essence(reply) for reply in got] == want
