"""What a request costs in the gateway, beside vllm-router on the same core in the same minutes.

Run by `make bench-gateway`, under five minutes (`BENCH_ARGS=--quick`: one); progress on standard
error. The gateway is a process of its own on one core, as is vllm-router (Rust, PyPI); stub
instances and clients share the other core. Both get the same requests in turns, P/D, streamed. The
CPU of a process is what the kernel counts for it, user and system. Our gateway counts, measures
and checks every request, vllm-router parses and writes it anew; neither writes an access log here.

The choice of instances is compared apart, in virtual time: 16 gateways before the same prefills,
our decisions beside those of two other projects.

The cost of a process is lower the more events it finds ready at once, so that all cells but the
paced one run at 64 clients, where both are busy without a pause.

Our gateway runs as its image has it, its request path compiled (hack/compile.py), and once more
interpreted. Without a C compiler there is only the second, and a line says so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import orjson
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, report
from benchmarks.parts import gateway_policies, gateway_rivals
from benchmarks.parts.gateway_rivals import Rival, cores, install_router, our_gateway, router
from benchmarks.parts.gateway_stub import Behaviour, Clients, Load, Stubs, direct
from tests.support.gateway_rig import eventually

CLIENTS = 64
PACED_CLIENTS = 256
PACED = (20, 0.010)
SMALL = "the quick brown fox jumps over the lazy dog " * 12
LARGE = SMALL * 62
"""32 KiB."""
HALF = 0.5
AS_INTERPRETED = 0.9
"""What compiling must be worth at least, of the interpreted gateway's CPU time."""
REFUSE_EVERY = 2
"""One refusal for each request that is served: every second attempt."""


@dataclass(frozen=True)
class Effort:
    """How long the bench takes for what it says."""

    rounds: int
    window: float
    """Seconds."""
    single: int
    """Requests of one client in a round."""
    virtual: float
    """Seconds of arrivals in virtual time."""


@dataclass(frozen=True)
class Beside:
    """What can run here beside our gateway."""

    router: bool
    compiled: bool


FULL, QUICK = Effort(5, 2.0, 1500, 20.0), Effort(2, 0.8, 300, 8.0)


@dataclass
class Cell:
    """One sort of load at one number of prefills, and what each rival took for it."""

    name: str
    prompt: str = SMALL
    fresh: bool = False
    paced: bool = False
    us: dict[str, list[float]] = field(default_factory=dict)
    """Microseconds of CPU per request in each round, by rival."""
    rates: dict[str, list[float]] = field(default_factory=dict)
    """Requests a second in each round."""
    rss: dict[str, float] = field(default_factory=dict)
    """Resident MiB after the last round."""


def request(prompt: str) -> bytes:
    """A streamed completion as a client sends it."""
    body = orjson.dumps(
        {"model": "reference", "prompt": prompt, "max_tokens": 64, "stream": True}
    )  # fmt: skip
    head = "POST /v1/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def one_round(cell: Cell, rival: Rival, effort: Effort, behaviour: Behaviour) -> None:
    """Measure one rival once.

    Raises:
        AssertionError: a request failed, or none was served.
    """
    behaviour.paced = PACED if cell.paced else None
    load = Load(rival.port, request(cell.prompt), cell.fresh)
    clients = Clients(load, PACED_CLIENTS if cell.paced else CLIENTS)
    await clients.start()
    await asyncio.sleep(0.3)
    load.begin_window()
    cpu, began = rival.cpu, asyncio.get_running_loop().time()
    await asyncio.sleep(effort.window)
    await eventually(lambda: bool(load.done or load.failed), "a request has ended")
    done, cpu = load.done, rival.cpu - cpu
    rate = done / (asyncio.get_running_loop().time() - began)
    await clients.stop()
    assert done and not load.failed, (
        f"{rival.name}: {load.failed} of {done} failed: {load.first_failure!r}"
    )
    cell.us.setdefault(rival.name, []).append(cpu / done * 1e6)
    cell.rates.setdefault(rival.name, []).append(rate)


async def single(rival: Rival, count: int) -> list[float]:
    """Milliseconds of each request of a lone client."""
    load = Load(rival.port, request(SMALL))
    clients = Clients(load, 1)
    await clients.start()
    await eventually(lambda: load.done + load.failed >= count, f"{count} requests are answered")
    await clients.stop()
    assert not load.failed, f"{rival.name}: {load.first_failure!r}"
    return [seconds * 1000 for seconds in load.times[count // 10 :]]


async def measure(
    cells: Sequence[Cell], rivals: Sequence[Rival], effort: Effort, stubs: Stubs, say: Progress
) -> None:
    """All rounds of these cells, rivals in turns."""
    for cell in cells:
        for _ in range(effort.rounds):
            for rival in rivals:
                await one_round(cell, rival, effort, stubs.behaviour)
        stubs.behaviour.paced = None
        cell.rss = {rival.name: rival.rss / (1 << 20) for rival in rivals}
        told = ", ".join(
            f"{name} {median(us):.0f} us of CPU, {median(cell.rates[name]):.0f} requests/s"
            for name, us in cell.us.items()
        )
        say(f"{cell.name}: {told}")


async def latency_rows(rivals: Sequence[Rival], effort: Effort, stubs: Stubs) -> list[Row]:
    """One client: what the way through a gateway adds, and what a refusal on it adds."""
    prefill, decode = stubs.of("prefill")[0].endpoint, stubs.of("decode")[0].endpoint
    added: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    refusals: list[float] = []
    ours = rivals[0]
    for _ in range(effort.rounds):
        plain = await direct(prefill, decode, request(SMALL), effort.single)
        base = median(plain) * 1000
        for rival in rivals:
            added[rival.name].append(median(await single(rival, effort.single)) - base)
        stubs.behaviour.refuse_every = REFUSE_EVERY
        stubs.behaviour.refused = 0
        refused = median(await single(ours, effort.single)) - base
        stubs.behaviour.refuse_every = 0
        refusals.append(refused - added[ours.name][-1])
    said = "".join(
        f"; {name} adds {median(values):.3f} ms" for name, values in list(added.items())[1:]
    )
    return [
        _row("added p50, one client", added[ours.name], "ms", f"promised{said}", 0.3, 1.0),
        _row("time that a refusal adds", refusals, "ms", "promised", 0.1, 1.0),
    ]


async def group(
    prefills: int, cells: Sequence[Cell], effort: Effort, beside: Beside, say: Progress,
    more: Callable[[Sequence[Rival], Stubs], Awaitable[list[Row]]] | None = None,
) -> list[Row]:  # fmt: skip
    """Start stubs and rivals for so many prefills and measure the cells; rows of `more`."""
    ours, _ = cores()
    async with AsyncExitStack() as stack:
        stubs = await Stubs().start(prefills, max(1, prefills // 4))
        stack.callback(stubs.stop)
        quiet = ("--access-log", "off")
        rivals = [await our_gateway(stubs, ours, *quiet, compiled=beside.compiled)]
        stack.callback(rivals[0].stop)
        if beside.router:
            rivals.append(await router(stubs, ours))
            stack.callback(rivals[-1].stop)
        if beside.compiled:
            name = gateway_rivals.INTERPRETED
            rivals.append(await our_gateway(stubs, ours, *quiet, compiled=False, name=name))
            stack.callback(rivals[-1].stop)
        await measure(cells, rivals, effort, stubs, say)
        return await more(rivals, stubs) if more is not None else []


def _row(
    what: str, values: Sequence[float], unit: str, vs: str, reference: float, floor: float
) -> Row:
    return Row(
        what, median(values), unit, vs, reference, floor, "lower", len(values),
        max(values) - min(values),
    )  # fmt: skip


def cell_rows(cells: Sequence[Cell]) -> list[Row]:
    """CPU per request against vllm-router's, where there is one."""
    rows = []
    for cell in cells:
        (_, ours), *others = cell.us.items()
        rows += [
            _row(
                f"CPU per request, {cell.name}",
                ours,
                "us",
                name,
                median(theirs),
                AS_INTERPRETED if name == gateway_rivals.INTERPRETED else HALF,
            )
            for name, theirs in others
        ]
    return rows


def memory_rows(small: Cell, last: Cell) -> list[Row]:
    """Resident memory after 64 clients with small prompts, and after everything else as well.

    The second is compared with the other process: large prompts in flight must be somewhere.
    """
    ours, *others = small.rss.items()
    said = "".join(f"; {name} has {value:.0f} MiB" for name, value in others)
    rows = [Row("resident memory, M = 16", ours[1], "MiB", f"promised{said}", 40, 1.0, "lower")]
    (_, mine), *theirs = last.rss.items()
    rows += [
        Row("resident memory after all load, M = 16", mine, "MiB", name, value, 1.0, "lower")
        for name, value in theirs
        if name != gateway_rivals.INTERPRETED
    ]
    return rows


async def everything(effort: Effort, beside: Beside, say: Progress) -> list[Row]:
    """All rows."""
    one = Cell("M = 1")
    sixteen = Cell("M = 16")
    others = [
        Cell("M = 16, prompts of 32 KiB", LARGE),
        Cell("M = 16, a connection per request", fresh=True),
        Cell("M = 16, paced streams", paced=True),
    ]
    many = Cell("M = 64")

    async def further(rivals: Sequence[Rival], stubs: Stubs) -> list[Row]:
        return await latency_rows(rivals, effort, stubs)

    await group(1, [one], effort, beside, say)
    rows = await group(16, [sixteen, *others], effort, beside, say, further)
    await group(64, [many], effort, beside, say)
    mine = [cell.us["pdserve"] for cell in (one, sixteen, many)]
    per_core = [1e6 / us for us in mine[1]]
    return [
        *cell_rows([one, sixteen, many, *others]),
        _row("CPU per request, M = 64", mine[2], "us", "M = 1", median(mine[0]), 1.2),
        Row(
            "requests per second of CPU, M = 16", median(per_core), "1/s", "promised", 8000, 1.0,
            "higher", len(per_core), max(per_core) - min(per_core),
        ),
        *rows,
        *memory_rows(sixteen, others[-1]),
        *gateway_policies.rows(gateway_policies.ALL, effort.virtual, say),
    ]  # fmt: skip


def main() -> int:
    """0: every floor held; 1: one failed, or the bench could not go on; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="make bench-gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short rounds instead of five")
    parser.add_argument("--alone", action="store_true", help="without vllm-router")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    say = Progress()
    why_not = "not wanted" if chosen.alone else install_router(say)
    if why_not:
        say(f"without vllm-router, so no row compares with it: {why_not}")
    interpreted = gateway_rivals.compile_ours()
    if interpreted:
        say(f"our gateway interpreted only: {interpreted}")
    beside = Beside(router=not why_not, compiled=not interpreted)
    gateways, rest = cores()
    os.sched_setaffinity(0, {rest})
    say(f"gateways on core {gateways}, stubs and clients on core {rest}; load {os.getloadavg()}")
    try:
        rows = uvloop.run(everything(QUICK if chosen.quick else FULL, beside, say))
    except (AssertionError, OSError) as error:
        print(f"the bench stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    say(f"load {os.getloadavg()}")
    return report("gateway", rows)


if __name__ == "__main__":
    sys.exit(main())
