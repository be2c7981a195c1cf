"""Clients that attack: mutated bodies, requests abandoned at any time, too large bodies."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from benchmarks.harness import Progress, Row
from benchmarks.parts.hostile_rig import (
    MIB,
    MODEL,
    PATIENCE,
    Probe,
    Service,
    completion,
    engine,
    outcome,
    over_engines,
    over_stubs,
    probing,
    request,
    watching,
)
from tests.support.engines import Client, until
from tests.support.hostile_bodies import Tally, attack

from pdserve.wire.calls import PATH_HEALTH

WINDOWS = 5
"""Repetitions of what is compared: with and without the attack, in turns."""
PROBES = 25.0
"""Honest requests a second beside an attack."""
LARGE = 4 * MIB - 1
BOUND = 60_000
"""`maxPromptBytes` of the stubs' route table, in the order of the real engines' own."""


async def bodies(share: float, progress: Progress) -> list[Row]:
    """Mutated bodies to a gateway over stubs and over real engines; honest requests beside them."""
    count, count_real = round(50_000 * share), round(3_000 * share)
    async with over_stubs(2, 2) as service:
        rows = await _attacked(service, "stubs", count, 5, progress)
    async with over_engines(1, 2) as service:
        return rows + await _attacked(service, "real engines", count_real, 12, progress)


async def _attacked(
    service: Service, over: str, count: int, slowed: float, progress: Progress
) -> list[Row]:
    gateway = service.gateways[0]
    await service.refused_of(20)
    whole, quiet, beside = Tally(), [], []
    base = gateway.rss
    for number in range(WINDOWS):
        quiet.append(await _honest(service, 2.0))
        began = time.monotonic()
        async with probing(service.port, PROBES, completion) as probe:
            part = await attack(
                "127.0.0.1",
                service.port,
                900 + number,
                count // WINDOWS,
                model=MODEL,
                patience=PATIENCE / 2,
            )
        beside.append(probe)
        whole.statuses += part.statuses
        whole.faults += part.faults
        whole.first_line += part.first_line
        progress(
            f"{over}: {sum(whole.statuses.values())} bodies answered, "
            f"{len(whole.faults)} faults, {time.monotonic() - began:.1f} s, "
            f"{probe.sent} honest beside them: p50 {probe.p50:.1f} ms, {len(probe.failed)} failed"
        )
    progress(f"{over}: {dict(whole.statuses)}, min_tokens null or deep: {whole.first_line}")
    for fault, body in whole.faults[:3]:
        progress(f"fault: {fault} to {body[:200]!r}")
    # The targets are wide: no prompt misses them, so even `deadline_infeasible` is a fault here.
    faults = len(whole.faults) + whole.statuses[503]
    grown = max(0, gateway.rss - base) / MIB
    await asyncio.sleep(1)
    left = await service.left_behind() + await service.refused_of(20)
    p50, still = ([probe.p50 for probe in probes] for probes in (beside, quiet))
    lost = sum(len(probe.failed) for probe in beside)
    return [
        Row(
            f"bodies over {over}: 5xx or closed connection", faults, "requests",
            "bodies sent, 9 of 10 mutated", count, 0, "lower",
        ),
        Row(
            f"... over {over}: left in room, slots, KV, or refused of 20", left, "requests",
            "honest requests afterwards", 20, 0, "lower",
        ),
        Row(
            f"... over {over}: honest requests beside them that fail", lost, "requests",
            "sent beside them", sum(probe.sent for probe in beside), 0, "lower",
        ),
        Row(
            f"... over {over}: honest p50 beside them", median(p50), "ms", "without the attack",
            median(still), slowed, "lower", WINDOWS, max(p50) - min(p50),
        ),
        Row(
            f"... over {over}: gateway memory growth", grown, "MiB", "before them", base / MIB,
            0.5, "lower",
        ),
    ]  # fmt: skip


async def _honest(service: Service, seconds: float) -> Probe:
    async with probing(service.port, PROBES, completion) as probe:
        await asyncio.sleep(seconds)
    return probe


async def aborts(share: float, progress: Progress) -> list[Row]:
    """Clients that leave at random times, streamed or whole, before, in and after every leg."""
    rounds, each = 10, max(20, round(1_000 * share))
    dice, held, seen = random.Random(5), [], Counter[str]()
    numbers = itertools.count()
    async with over_engines(1, 2, (4, 16)) as service:
        await service.refused_of(20)

        async def client(wanted: int) -> None:
            while seen["aborts"] < wanted:
                await _leave(service.port, next(numbers), dice, seen)

        for number in range(rounds):
            began = time.monotonic()
            await asyncio.gather(*(client((number + 1) * each) for _ in range(16)))
            took = time.monotonic() - began
            await asyncio.sleep(1.0)
            held.append(await service.left_behind())
            progress(
                f"{seen['aborts']} aborts, {seen['late']} of them after the first byte, last "
                f"{each} in {took:.1f} s; held 1 s later: {held[-1]:g}"
            )
        refused = await service.refused_of(20)
    return [
        Row(
            "aborts on real engines: KV or slots held 1 s later", max(held), "requests",
            "aborts", seen["aborts"], 0, "lower", rounds, max(held) - min(held),
        ),
        Row(
            "... aborts: refused afterwards", refused, "requests", "honest requests", 20,
            0, "lower",
        ),
    ]  # fmt: skip


async def _leave(port: int, number: int, dice: random.Random, seen: Counter[str]) -> None:
    """One request whose client leaves at a random time; counted in `seen` if it was not over."""
    body = completion(
        f"Number {number} is " * dice.randrange(1, 12), max_tokens=40, ignore_eos=True,
        stream=bool(number % 2),
    )  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = b""
    try:
        writer.write(request(body))
        async with asyncio.timeout(dice.random() * dice.choice((0.01, 0.1, 0.5))):
            began = await reader.readexactly(1)
            await reader.readuntil(b"[DONE]" if number % 2 else b"usage")
    except TimeoutError:
        seen["aborts"] += 1
        seen["late"] += bool(began)
    finally:
        if dice.random() < 0.3:
            writer.transport.abort()
        writer.close()


# --- large bodies ---------------------------------------------------------------------------------


def _large(before: bytes, middle: bytes, after: bytes) -> bytes:
    room = LARGE - len(before) - len(after)
    return before + middle * (room // len(middle)) + b" " * (room % len(middle)) + after


_PROMPT = b'{"model":"' + MODEL.encode() + b'","prompt":'
TOKENISED = _PROMPT + b'"' + b"a " * 34_000 + b'"}'
"""Short enough that an engine must tokenise it to refuse it: that may take longer."""
SHAPES = (
    _large(_PROMPT + b'"', b"a ", b'"}'),
    _large(_PROMPT + b"[5", b",5", b"]}"),
    _large(_PROMPT + b'"', b"\\u0041", b'"}'),
    TOKENISED,
)
"""Text, token ids, escapes: each parses, none fits into a context."""


async def large(share: float, progress: Progress) -> list[Row]:
    """Bodies of 4 MiB - 1 to an engine and to a gateway; /health is asked all the time."""
    count = max(6, round(45 * share))
    client = Client()
    alone = engine("both", ("--slots", "2"))
    try:
        alone.start()
        await until(lambda: client.up(alone), "the engine listens", 60)
        rows = await _refused("engine", alone.host, 8000, lambda: alone.rss, count, progress)
    finally:
        alone.kill()
        await client.close()
    async with over_stubs(1, 1, max_prompt_bytes=BOUND) as service:
        gateway = service.gateways[0]
        return rows + await _refused(
            "gateway", "127.0.0.1", gateway.port, lambda: gateway.rss, count, progress
        )


async def _refused(
    who: str, host: str, port: int, rss: Callable[[], int], count: int, progress: Progress
) -> list[Row]:
    small = _PROMPT + b"5}"
    refusals: tuple[list[float], list[float]] = ([], [])
    healthy: tuple[list[float], list[float]] = ([], [])
    await asyncio.to_thread(_last_byte, host, port, small)
    base = rss()
    async with watching(rss) as seen:
        for number in range(count):
            for large, body in enumerate((small, SHAPES[number % len(SHAPES)])):
                ended = asyncio.Event()
                asked = asyncio.create_task(_ask_health(host, port, ended))
                try:
                    took = await asyncio.to_thread(_last_byte, host, port, body)
                finally:
                    ended.set()
                    healthy[large].extend(await asked)
                if body is not TOKENISED:
                    refusals[large].append(took)
            if number % 10 == 9:
                progress(f"{who}: {number + 1} large bodies, last {refusals[1][-1]:.1f} ms")
    worst, usual = max(refusals[1]), median(refusals[0])
    p99 = sorted(healthy[1])[int(len(healthy[1]) * 0.99)]
    grown = (max(seen) - base) / MIB
    progress(
        f"{who}: small body refused in {usual:.2f} ms; "
        f"/health beside small ones: {median(healthy[0]):.2f} ms"
    )
    spread = worst - min(refusals[1])
    return [
        Row(
            f"{who}: 4 MiB - 1 body, last byte to 400, slowest", worst, "ms", "limit", 50, 1,
            "lower", len(refusals[1]), spread,
        ),
        Row(
            f"... {who}: /health p99 meanwhile", p99, "ms", "limit", 50, 1,
            "lower", len(healthy[1]), max(healthy[1]) - min(healthy[1]),
        ),
        Row(f"... {who}: memory growth", grown, "MiB", "limit", 50, 1, "lower"),
    ]  # fmt: skip


def _last_byte(host: str, port: int, body: bytes) -> float:
    """Milliseconds from the last byte of a body to the status 400."""
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(request(body)[:-1])
        time.sleep(0.02)  # what was sent is there before the last byte: only that one is timed
        began = time.perf_counter()
        connection.sendall(body[-1:])
        status = connection.recv(12)
        took = (time.perf_counter() - began) * 1000
    if status != b"HTTP/1.1 400":
        raise AssertionError(f"a body of {len(body)} bytes was answered with {status!r}")
    return took


async def _ask_health(host: str, port: int, ended: asyncio.Event) -> list[float]:
    times: list[float] = []
    reader, writer = await asyncio.open_connection(host, port)
    while not ended.is_set():
        began = time.perf_counter()
        writer.write(f"GET {PATH_HEALTH} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        times.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.002)
    writer.close()
    return times


async def memory(share: float, progress: Progress) -> list[Row]:
    """150 clients that send half of 4 MiB and wait."""
    count, half = 150, b"x" * (2 * MIB)
    peaks: list[float] = []
    refused: list[int] = []
    for framing in ("length", "chunks")[: 2 if share >= 0.5 else 1]:
        async with over_stubs(1, 1) as service:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{_FRAMING[framing]}\r\n\r\n"
            sent = half if framing == "length" else b"2\r\nxx\r\n" * (64 << 10)
            writers: list[Any] = []
            async with watching(partial(getattr, service.gateways[0], "rss")) as seen:
                for _ in range(count):
                    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
                    writers.append(writer)
                    writer.write(head.encode() + sent)
                    try:
                        await writer.drain()
                    except ConnectionError:
                        continue
                answers = [await outcome(service.port, completion()) for _ in range(20)]
            refused.append(sum(status != 200 for status, _ in answers))
            peaks.append(max(seen) / MIB)
            for writer in writers:
                writer.close()
        progress(f"{count} half bodies ({framing}): gateway at {peaks[-1]:.0f} MiB")
    return [
        Row(
            "150 half bodies of 4 MiB: gateway memory", max(peaks), "MiB", "limit", 256, 1,
            "lower", len(peaks), max(peaks) - min(peaks),
        ),
        Row(
            "... half bodies: refused meanwhile", sum(refused), "requests", "honest requests",
            20 * len(refused), 0, "lower",
        ),
    ]  # fmt: skip


_FRAMING = {"length": f"content-length: {LARGE}", "chunks": "transfer-encoding: chunked"}
