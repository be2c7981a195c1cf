"""What it costs, and what it saves, that a stream goes on from another decode when its own is lost.

Run by `make bench-continued`, about four minutes; progress on standard error. A prefill and two
decodes of the Reference engine, all real processes in exact mode, answer through a gateway; a
proxy before each decode cuts replies at a chosen token. The same answers are asked for

- without a loss, token by token as they come: what every other answer is compared with;
- with a loss after each of tokens 1 to 64, streamed, and at 64 points of a reply sent whole;
- with a loss after token 16 to 1,024, for the gap that the client sees. Starting over, which is
  what a client can do by itself, takes from the request to the token after the gap;
- without a loss, through a gateway whose engine names no tokens: what naming them costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, concluded
from tests.support.continued_world import ContinuedWorld, continued_world, essence

from pdserve.engines import registry
from pdserve.engines.pull_flow import PullFlow
from pdserve.wire.calls import PATH_CHAT, PATH_COMPLETIONS

EVERY = 64
GAPS = {16: 0.6, 64: 0.4, 256: 0.15, 1024: 0.05}
"""By tokens before the loss: most of the time of starting over that the gap may take."""
ROUNDS = 5
PROMPT = [5 + (i * 37) % 2000 for i in range(256)]
ASKS: tuple[tuple[str, dict[str, Any]], ...] = (
    (PATH_COMPLETIONS, {"prompt": "Return a new list", "temperature": 0, "logprobs": 2}),
    (PATH_COMPLETIONS, {"prompt": "x = [1, 2,", "temperature": 0.9, "seed": 7}),
    (
        PATH_CHAT,
        {
            "messages": [{"role": "user", "content": "Permission"}],
            "temperature": 0.8, "seed": 3, "logprobs": True,
        },
    ),
)  # fmt: skip


async def equal_rows(world: ContinuedWorld, progress: Progress) -> list[Row]:
    """How many answers are as without a loss."""
    streams = wholes = 0
    for path, fields in ASKS:
        body = {"max_tokens": EVERY + 2, "ignore_eos": True, **fields}
        want = essence(await world.stream(path, body))
        # Text that is held back comes with a later event: as many losses as there are events.
        for cut in range(1, EVERY + 1):
            at = min(cut, len(want["text"]))
            streams += essence(await world.stream(path, body, at)) == want
        progress(f"{path}: {EVERY} streams lost their decode, {streams} equal so far")
        began = time.perf_counter()
        plain = answer(await world.whole(path, body))
        seconds = time.perf_counter() - began
        for cut in range(EVERY):
            lost = seconds * cut / EVERY
            wholes += answer(await world.whole(path, body, lost)) == plain
        progress(f"{path}: {EVERY} whole replies lost their decode, {wholes} equal so far")
    total = float(EVERY * len(ASKS))
    return [
        Row(
            f"{name} equal to an undisturbed one, decode lost at any of {EVERY} points",
            float(count), "answers", "answers that lost a decode", total, 1.0, "higher", int(total),
        )
        for name, count in (("stream", streams), ("whole reply", wholes))
    ]  # fmt: skip


def answer(reply: Any) -> Any:
    """A whole reply without what differs from one request to the next."""
    usage = {k: v for k, v in reply["usage"].items() if k.endswith("_tokens")}
    return reply["choices"], usage


async def gap_row(world: ContinuedWorld, tokens: int) -> Row:
    """The wait for token `tokens` + 1 after a loss, and what starting over would take."""
    body = {
        "prompt": PROMPT, "max_tokens": tokens + 8, "temperature": 0, "ignore_eos": True,
        "logprobs": 0,
    }  # fmt: skip
    gaps, overs = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await world.stream(PATH_COMPLETIONS, body)
        overs.append(1000 * (world.arrivals[tokens] - began))
        await world.stream(PATH_COMPLETIONS, body, tokens)
        gaps.append(1000 * (world.arrivals[tokens] - world.arrivals[tokens - 1]))
    return Row(
        f"gap in a stream that lost its decode after token {tokens}", median(gaps), "ms",
        "starting the answer over", median(overs), GAPS[tokens], "lower", ROUNDS,
        max(gaps) - min(gaps),
    )  # fmt: skip


async def undisturbed(world: ContinuedWorld) -> list[float]:
    """Milliseconds a token of streams without a loss."""
    body = {"prompt": "x = [1, 2,", "max_tokens": 400, "temperature": 0, "ignore_eos": True}
    found = []
    for _ in range(ROUNDS):
        await world.stream(PATH_COMPLETIONS, body)
        times = world.arrivals
        found.append(1000 * (times[-1] - times[0]) / (len(times) - 1))
    return found


async def measure(progress: Progress) -> list[Row]:
    """All rows."""
    async with continued_world() as world:
        rows = await equal_rows(world, progress)
        for tokens in GAPS:
            rows.append(await gap_row(world, tokens))
            progress(f"gap after token {tokens}: {rows[-1].value:.0f} ms")
        named = await undisturbed(world)
    with patch.object(registry, "flow", lambda name: PullFlow()):  # asks for no ids
        async with continued_world() as world:
            plain = await undisturbed(world)
    rows.append(
        Row(
            "time between tokens of an undisturbed stream, tokens named", median(named), "ms",
            "tokens not named", median(plain), 1.1, "lower", ROUNDS, max(named) - min(named),
        )
    )  # fmt: skip
    return rows


def main() -> int:
    """See the module."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    return concluded("continued", measure(Progress()))


if __name__ == "__main__":
    sys.exit(main())
