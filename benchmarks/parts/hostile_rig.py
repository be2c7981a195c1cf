"""What `hostile.py` attacks: gateway processes over stub engines or over real engine processes.

Stubs run in the bench's own process: they compute nothing, so what is measured is the gateway.
Real engines are processes with the built-in model, linked as the operator would link them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from benchmarks.harness import OUT
from tests.support import engines as real
from tests.support import stub_engine as stub
from tests.support.engines import Client, EngineProcess, Group, until
from tests.support.gateway_process import GatewayProcess, write_routes
from tests.support.gateway_rig import metric_values
from tests.support.hostile_bodies import COMPLETIONS, read_reply

from pdserve.terms import Role, Slo
from pdserve.wire import metrics as names

MIB = 1 << 20
WIDE = Slo(ttft=60.0, handoff=60.0, tpot=60.0, attainment=0.99)
"""Targets that every request meets: a 503 is then a fault."""
MODEL = "reference"
"""What both real engines and stubs serve here."""
RUNNING = f'{names.SLOTS}{{state="running"}}'
OCCUPIED = {"prefill": ("executing", "holding"), "decode": ("running", "prefetching")}
"""States in which a slot of a real engine is occupied, by role."""
LOST = (asyncio.IncompleteReadError, ConnectionError, TimeoutError, OSError)
"""What a client sees instead of an answer."""
PATIENCE = 60.0
"""Seconds within which whatever is waited for must have happened."""


@dataclass
class Service:
    """Gateways over one P/D group, and a client of the engines."""

    routes: Path
    client: Client
    gateways: list[GatewayProcess] = field(default_factory=list)
    stubs: list[stub.StubEngine] = field(default_factory=list)
    group: Group | None = None

    @property
    def port(self) -> int:
        """Where the first gateway listens."""
        return self.gateways[0].port

    async def gateway_metric(self, name: str) -> float:
        """Sum over the series of this name of the first gateway."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        text = str((await self.client.call("GET", url, token=None)).body)
        return sum(metric_values(text, name, {}))

    async def left_behind(self) -> float:
        """Waiting requests and occupied slots in the gateway; KV and slots in real engines."""
        found = await self.gateway_metric(names.GATEWAY_WAITING)
        found += await self.gateway_metric(names.GATEWAY_INFLIGHT)
        return found + await self.held()

    async def held(self) -> float:
        """Requests that occupy KV or slots in the engines, as these say."""
        if self.group is None:
            return float(sum(each.used for each in self.stubs))
        return sum(
            [
                await self.client.metric(each, f'{names.SLOTS}{{state="{state}"}}')
                for each in (*self.group.prefills, *self.group.decodes)
                for state in OCCUPIED[each.role]
            ]
        )

    async def refused_of(self, count: int) -> int:
        """How many of so many honest requests, sent at once, are not answered with 200."""
        answers = await asyncio.gather(*(outcome(self.port, completion()) for _ in range(count)))
        return sum(status != 200 for status, _ in answers)


@asynccontextmanager
async def over_stubs(
    prefills: int, decodes: int, slots: tuple[int, int] = (8, 64), *, gateways: int = 1,
    **scenario: Any,
) -> AsyncIterator[Service]:  # fmt: skip
    """Gateway processes over stubs; `slots`: b_p and b_d."""
    async with _service() as (service, stack):
        cluster = stub.Cluster()
        roles: list[Role] = ["prefill"] * prefills + ["decode"] * decodes
        for number, role in enumerate(roles):
            b = slots[role == "decode"]
            made = stub.StubEngine(cluster, role, f"{role[0]}{number}", b)
            service.stubs.append(await made.start())
            stack.push_async_callback(made.kill)
        write_routes(service.routes, WIDE, *service.stubs, model=MODEL, **scenario)
        await _gateways(service, stack, gateways, stub.TOKEN)
        yield service


@asynccontextmanager
async def over_engines(
    prefills: int, decodes: int, slots: tuple[int, int] = (2, 8), *, slo: Slo = WIDE,
    prefill_args: tuple[str, ...] = (), decode_args: tuple[str, ...] = (), **scenario: Any,
) -> AsyncIterator[Service]:  # fmt: skip
    """A gateway process over real engines, linked and warm."""
    async with _service() as (service, stack):
        b_p, b_d = (("--slots", str(b)) for b in slots)
        group = service.group = Group(
            service.client,
            [engine("prefill", (*b_p, *prefill_args)) for _ in range(prefills)],
            [engine("decode", (*b_d, *decode_args)) for _ in range(decodes)],
        )
        members = (*group.prefills, *group.decodes)
        for each in members:
            stack.callback(each.kill)
            each.start()
        for each in members:
            await until(partial(service.client.up, each), f"{each.name} listens", PATIENCE)
        await group.push()
        routed = (e.route(slots[e.role == "decode"]) for e in members)
        write_routes(service.routes, slo, *routed, model=MODEL, **scenario)
        await _gateways(service, stack, 1, real.TOKEN)
        yield service


def engine(role: str, args: tuple[str, ...] = ()) -> EngineProcess:
    """An engine process that logs beside the results."""
    OUT.mkdir(parents=True, exist_ok=True)
    return EngineProcess(role, args, log=OUT / "hostile-engines.log")


@asynccontextmanager
async def _service() -> AsyncIterator[tuple[Service, AsyncExitStack]]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pdserve-bench-"))
        client = Client()
        stack.push_async_callback(client.close)
        yield Service(Path(directory) / "routes.json", client), stack


async def _gateways(service: Service, stack: AsyncExitStack, count: int, token: str) -> None:
    for _ in range(count):
        made = GatewayProcess(service.routes, token=token)
        stack.push_async_callback(made.kill)
        service.gateways.append(await made.start())


# --- clients ------------------------------------------------------------------------------------


def completion(prompt: str = "hello", **fields: Any) -> bytes:
    """The body of an honest request."""
    return orjson.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 3, **fields})


def request(body: bytes, path: str = COMPLETIONS) -> bytes:
    """A whole HTTP request."""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def outcome(port: int, body: bytes) -> tuple[int, bytes]:
    """Status and reply of one request; 0 and the reason when its connection ended without one.

    A stream that ends without `[DONE]`, or with an error in it, counts as status 0 too.
    """
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(body))
            status, reply, _ = await read_reply(reader)
    except LOST as error:
        return 0, repr(error).encode()
    finally:
        if writer is not None:
            writer.close()
    if reply.startswith(b"data: ") and (
        b'data: {"error"' in reply or not reply.endswith(b"data: [DONE]\n\n")
    ):
        return 0, reply[-300:]
    return status, reply


@dataclass
class Probe:
    """Honest requests at a steady rate: milliseconds of the answered, and what others got."""

    times: list[float] = field(default_factory=list)
    failed: list[tuple[int, bytes]] = field(default_factory=list)

    @property
    def p50(self) -> float:
        """Milliseconds; of `PATIENCE` when none was answered."""
        return median(self.times) if self.times else PATIENCE * 1000

    @property
    def sent(self) -> int:
        """Requests, answered or not."""
        return len(self.times) + len(self.failed)


@asynccontextmanager
async def probing(port: int, rate: float, make: Callable[[], bytes]) -> AsyncIterator[Probe]:
    """Send honest requests at `rate` a second until the block ends; then wait for the last."""
    probe, ended = Probe(), asyncio.Event()

    async def one() -> None:
        began = time.perf_counter()
        status, reply = await outcome(port, make())
        if status == 200:
            probe.times.append((time.perf_counter() - began) * 1000)
        else:
            probe.failed.append((status, reply))

    async def send() -> None:
        async with asyncio.TaskGroup() as sent:
            while not ended.is_set():
                sent.create_task(one())
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), 1 / rate)

    sender = asyncio.create_task(send())
    try:
        yield probe
    finally:
        ended.set()
        await sender


@asynccontextmanager
async def watching(rss: Callable[[], int]) -> AsyncIterator[list[int]]:
    """Sample resident bytes every 5 ms while the block runs; the list's largest is the peak."""
    seen = [rss()]

    async def sample() -> None:
        while True:
            await asyncio.sleep(0.005)
            seen.append(rss())

    sampler = asyncio.create_task(sample())
    try:
        yield seen
    finally:
        sampler.cancel()
        seen.append(rss())


async def eventually(what: str, check: Callable[[], Awaitable[bool]]) -> float:
    """Poll until it holds; seconds that took.

    Raises:
        AssertionError: it does not within `PATIENCE`.
    """
    began = time.monotonic()
    await until(check, what, PATIENCE)
    return time.monotonic() - began
