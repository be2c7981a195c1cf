"""What honest clients must get: whole replies as fast as streamed ones, no refusal when idle."""

from __future__ import annotations

import asyncio
import random
import time
from statistics import median

from benchmarks.harness import Progress, Row
from benchmarks.parts.hostile_rig import (
    WIDE,
    Service,
    completion,
    outcome,
    over_engines,
    over_stubs,
    request,
)

from pdserve.terms import Slo

WORDS = ("permission", "denied", "file", "return", "list", "a", "of", "names")
LENGTHS = (1, 5, 20, 60, 60, 120, 200)
"""Words of a prompt; 60 twice, the length that was once refused."""


async def whole(share: float, progress: Progress) -> list[Row]:
    """Requests a second, whole and streamed in turns, where prefill slots are what is scarce.

    Raises:
        AssertionError: a request failed.
    """
    count, pairs = max(40, round(200 * share)), 5
    rates: dict[bool, list[float]] = {False: [], True: []}
    failed = 0
    async with over_stubs(2, 2, (2, 64)) as service:
        for each in service.stubs:
            each.prefill_seconds, each.token_seconds = 0.05, 0.02
        await service.refused_of(20)
        for number in range(pairs):
            for stream in (True, False) if number % 2 else (False, True):
                body = completion(max_tokens=25, stream=stream)
                began = time.perf_counter()
                answers = await asyncio.gather(*(outcome(service.port, body) for _ in range(count)))
                rates[stream].append(count / (time.perf_counter() - began))
                failed += sum(status != 200 for status, _ in answers)
                progress(f"{'streamed' if stream else 'whole'}: {rates[stream][-1]:.1f}/s")
    if failed:
        raise AssertionError(f"{failed} of {2 * pairs * count} honest requests failed")
    ratios = [a / b for a, b in zip(rates[False], rates[True], strict=True)]
    streamed = median(rates[True])
    return [
        Row(
            "whole replies", median(ratios) * streamed, "1/s", "streamed, same stubs", streamed,
            0.95, "higher", pairs, (max(ratios) - min(ratios)) * streamed,
        ),
    ]  # fmt: skip


async def idle(share: float, progress: Progress) -> list[Row]:
    """Prompts one after another on services that have just started: none may be refused.

    1. Measure the TTFT of the longest prompts with wide targets.
    2. Start everything anew with a TTFT target of a bit more than twice the longest of them.
    3. Count refusals and the TTFT seen; half of the starts begin with the longest prompts.
    """
    starts, each = 4, max(20, round(250 * share))
    dice = random.Random(11)
    async with over_engines(1, 1) as service:
        alone = [(await _first_token(service, max(LENGTHS), dice))[1] for _ in range(60)]
    target = max(0.1, 2.2 * max(alone))
    progress(f"longest prompts: TTFT {max(alone) * 1000:.0f} ms at most; target {target:.2f} s")
    refused, times = [], []
    for number in range(starts):
        slo = Slo(target, WIDE.handoff, WIDE.tpot, WIDE.attainment)
        async with over_engines(1, 1, slo=slo) as service:
            lengths = [dice.choice(LENGTHS) for _ in range(each)]
            lengths[:20] = sorted(lengths[:20], reverse=number % 2 == 0)
            seen = []
            for length in lengths:
                seen.append(await _first_token(service, length, dice))
                if len(seen) % 50 == 0:
                    progress(f"start {number + 1}: {len(seen)} prompts")
        refused.append(sum(status != 200 for status, _ in seen))
        times += [seconds for status, seconds in seen if status == 200]
        progress(f"start {number + 1}: {refused[-1]} of {each} refused")
    p99 = sorted(times)[int(len(times) * 0.99)] if times else target
    return [
        Row(
            "idle, also right after start: prompts refused", sum(refused), "requests",
            "prompts of 1 to 200 words", starts * each, 0, "lower", starts,
            max(refused) - min(refused),
        ),
        Row(
            "... idle: TTFT p99", p99, "s", "target", target, 1, "lower", len(times),
            max(times, default=0) - min(times, default=0),
        ),
    ]  # fmt: skip


async def _first_token(service: Service, words: int, dice: random.Random) -> tuple[int, float]:
    """Status, and seconds until the first bytes of a streamed reply."""
    prompt = " ".join(dice.choice(WORDS) for _ in range(words))
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    try:
        began = time.perf_counter()
        writer.write(request(completion(prompt, max_tokens=2, stream=True)))
        first = await reader.readuntil(b"\r\n\r\n")
        took = time.perf_counter() - began
        status = int(first.split(b" ", 2)[1])
        while status == 200 and not (await reader.readline()).startswith(b"data: [DONE]"):
            pass
        return status, took
    finally:
        writer.close()
