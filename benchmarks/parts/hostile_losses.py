"""Processes that end under load: prefills by one request, a decode, one of two gateways."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from statistics import median

from benchmarks.harness import Progress, Row
from benchmarks.parts.hostile_rig import (
    RUNNING,
    Service,
    completion,
    eventually,
    outcome,
    over_engines,
    over_stubs,
    probing,
)
from tests.support.stub_engine import StubEngine

POISON = "query-of-death"
DOWN = 1.0
"""Seconds until an instance that ended is there again."""


async def poison(share: float, progress: Progress) -> list[Row]:
    """One request ends every prefill that sees it; 40 honest requests a second go on."""
    rounds = 5 if share >= 0.5 else 2
    lost, back, usual, answers = [], [], [], []
    async with over_stubs(8, 2, (2, 64)) as service:
        prefills = [each for each in service.stubs if each.role == "prefill"]
        for each in service.stubs:
            each.prefill_seconds, each.token_seconds = 0.2, 0.01
            each.mortal = each.role == "prefill"
            each.breaks_on = POISON if each.mortal else ""
        bodies = iter(range(1 << 30))

        def honest() -> bytes:
            return completion(max_tokens=10, stream=bool(next(bodies) % 2))

        async with probing(service.port, 40, honest) as probe:
            await asyncio.sleep(1)
            for number in range(rounds):
                victim = prefills[number % len(prefills)]
                await victim.kill()
                usual.append(await _serve_again([victim], prefills))
                before = [each.events["broken"] for each in prefills]
                status, _ = await outcome(service.port, completion(POISON))
                answers.append(status)
                dead = [
                    each for each, was in zip(prefills, before, strict=True)
                    if each.events["broken"] > was
                ]  # fmt: skip
                lost.append(len(dead))
                back.append(await _serve_again(dead, prefills))
                progress(
                    f"query of death: {len(dead)} of 8 lost, answered {status}; "
                    f"all serve {back[-1]:.1f} s later (one killed: {usual[-1]:.1f} s)"
                )
    for failure in probe.failed[:3]:
        progress(f"lost: {failure}")
    return [
        Row(
            "query of death: prefills lost", max(lost), "instances", "prefills", len(prefills),
            2 / len(prefills), "lower", rounds, max(lost) - min(lost),
        ),
        Row(
            "... query of death: other requests that fail", len(probe.failed), "requests",
            "sent meanwhile", probe.sent, 0, "lower",
        ),
        Row(
            "... query of death: not told 502", sum(status != 502 for status in answers),
            "requests", "queries of death", rounds, 0, "lower",
        ),
        Row(
            "... query of death: until all prefills serve again", median(back), "s",
            "after one prefill was killed", median(usual), 3, "lower",
            rounds, max(back) - min(back),
        ),
    ]  # fmt: skip


async def _serve_again(dead: list[StubEngine], all_: list[StubEngine]) -> float:
    """Start what ended again after `DOWN`; seconds from then until all get requests."""
    await asyncio.sleep(DOWN)
    for each in dead:
        await each.start()
    before = [each.events["attempts"] for each in all_]

    async def serve() -> bool:
        return all(e.events["attempts"] > was for e, was in zip(all_, before, strict=True))

    return await eventually("all prefills serve", serve)


async def decode(share: float, progress: Progress) -> list[Row]:
    """2P2D of real engines: a decode is killed while 60 whole replies run on it."""
    wanted = 60 if share >= 0.5 else 20
    # The survivor takes the victim's share beside its own.
    pool = ("--kv-tokens", "40960")
    async with over_engines(2, 2, (4, 64), decode_args=pool) as service:
        assert service.group is not None
        victim = service.group.decodes[0]
        body = completion("Number one is", max_tokens=200, ignore_eos=True)
        asks = [asyncio.create_task(outcome(service.port, body)) for _ in range(2 * wanted)]

        async def busy() -> bool:
            return await service.client.metric(victim, RUNNING) >= wanted

        await eventually(f"{wanted} replies run on one decode", busy)
        running = int(await service.client.metric(victim, RUNNING))
        early = sum(ask.done() for ask in asks)
        victim.kill()
        began = time.monotonic()
        answers = await asyncio.gather(*asks)
        took = time.monotonic() - began
    bad = [answer for answer in answers if answer[0] != 200]
    progress(
        f"decode killed with {running} whole replies running ({early} had ended), "
        f"all {len(answers)} ended {took:.1f} s later, {len(bad)} without an answer"
    )
    for each in bad[:3]:
        progress(f"lost: {each}")
    return [
        Row(
            "decode of 2P2D killed: whole replies lost", len(bad), "requests",
            "running on it", running, 0, "lower",
        ),
    ]  # fmt: skip


async def gateways(share: float, progress: Progress) -> list[Row]:
    """One of two gateways is killed under load."""
    rounds = 3 if share >= 0.5 else 1
    open_, lost, others, again = [], [], 0, 0
    for _ in range(rounds):
        async with over_stubs(2, 2, gateways=2) as service:
            for each in service.stubs:
                each.prefill_seconds, each.token_seconds = 0.02, 0.02
            dead, alive = service.gateways
            body = completion(max_tokens=100, stream=True)
            async with probing(alive.port, 40, partial(bytes, body)) as beside:
                own = [asyncio.create_task(outcome(dead.port, body)) for _ in range(60)]
                await eventually("the streams are open", partial(_streaming, service, 60))
                running = sum(not ask.done() for ask in own)
                await dead.kill()
                ends = await asyncio.gather(*own)
                retried = await asyncio.gather(
                    *(outcome(alive.port, body) for status, _ in ends if status != 200)
                )
            open_.append(running)
            lost.append(sum(status != 200 for status, _ in ends))
            others += len(beside.failed)
            again += sum(status != 200 for status, _ in retried)
            await eventually("nothing is left behind", partial(_idle, service))
            progress(
                f"gateway killed with {running} open streams: {lost[-1]} lost, "
                f"{len(beside.failed)} of {beside.sent} of the other gateway"
            )
    return [
        Row(
            "one of two gateways killed: its requests lost", sum(lost), "requests",
            "open streams of it", sum(open_), 1, "lower", rounds, max(lost) - min(lost),
        ),
        Row(
            "... gateway killed: lost at the other, or sent again to it", others + again,
            "requests", "open streams of the killed", sum(open_), 0, "lower",
        ),
    ]  # fmt: skip


async def _streaming(service: Service, count: int) -> bool:
    return sum(each.running for each in service.stubs if each.role == "decode") >= count


async def _idle(service: Service) -> bool:
    # KV that a killed gateway left at a prefill waits for its lease, which stubs do not have.
    return not any(each.running for each in service.stubs)
