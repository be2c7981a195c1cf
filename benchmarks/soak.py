"""Twenty minutes at half load: memory, sockets and tasks must end as they began.

Run by `make bench-soak`; progress on standard error. A gateway process and two engine processes,
paced by a profile, get streams and whole replies of all lengths from as many clients as half of the
decode's slots; one in twenty leaves early. Resident memory, open descriptors and tasks of the event
loop are medians of samples: of the last quarter of the time beside the second quarter, when caches
are warm and connections are kept. At the end nothing may be left in any slot.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, concluded
from benchmarks.parts.hostile_rig import (
    LOST,
    PATIENCE,
    Service,
    completion,
    outcome,
    over_engines,
    request,
)  # fmt: skip
from tests.support.engines import until
from tests.support.gateway_rig import metric_values

MINUTES = 20.0
SLOTS = (4, 16)
CLIENTS = SLOTS[1] // 2
LEAVES = 0.05
"""Share of the clients that leave before their answer is complete."""
SAMPLE = 2.0
"""Seconds between two samples of memory."""
MEMORY = 1.02
FAILED = 0.001
"""Share of the requests of which as many may fail."""
RESIDENT, SOCKETS, TASKS = (
    "process_resident_memory_bytes", "process_open_fds", "pdserve_event_loop_tasks"
)  # fmt: skip
FIGURES = {
    RESIDENT: ("resident memory", "MiB", 2**20, MEMORY),
    SOCKETS: ("open descriptors", "descriptors", 1, 1.0),
    TASKS: ("tasks", "tasks", 1, 1.0),
}
"""What each is called, its unit, bytes of one, and the most of late over early."""
PROFILE = {
    "name": "bench-soak",
    "source": "No device: slow enough that two cores are half busy.",
    "prefill": {"a": 0.03, "b": 0.0001, "c": 0.0},
    "decode": {"d": 0.025, "e": 0.0005, "f": 0.0},
    "kv": {"bytesPerToken": 2048, "linkBytesPerSecond": 500e6},
}


@dataclass
class Sent:
    """What the clients did."""

    answered: int = 0
    left: int = 0
    failures: list[bytes] = field(default_factory=list)


class Watched:
    """The three processes' own figures."""

    def __init__(self, service: Service) -> None:
        assert service.group is not None
        engines = (*service.group.prefills, *service.group.decodes)
        self._urls = {each.role: f"{each.url}/metrics" for each in engines}
        self._urls["gateway"] = f"http://127.0.0.1:{service.port}/metrics"
        self._call = service.client.call

    async def read(self) -> dict[str, dict[str, float]]:
        """Memory, sockets and tasks by process."""
        found: dict[str, dict[str, float]] = {}
        for name, url in self._urls.items():
            text = str((await self._call("GET", url, token=None)).body)
            found[name] = {
                each: sum(metric_values(text, each, {})) for each in (RESIDENT, SOCKETS, TASKS)
            }
        return found


async def client(port: int, seed: int, sent: Sent, ended: asyncio.Event, say: Progress) -> None:
    """Send one request after the other until the end."""
    rng = random.Random(seed)
    while not ended.is_set():
        body = completion(
            "word " * rng.choice((3, 30, 300)), max_tokens=rng.choice((4, 32, 128)),
            stream=rng.random() < 0.7, ignore_eos=True,
        )  # fmt: skip
        if rng.random() < LEAVES:
            with suppress(*LOST):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request(body))
                await asyncio.sleep(rng.uniform(0, 1))
                writer.close()
                await writer.wait_closed()
            sent.left += 1
            continue
        status, reply = await outcome(port, body)
        if status == 200:
            sent.answered += 1
        else:
            sent.failures.append(b"%d: %b" % (status, reply[-300:]))
            say(f"failed: {sent.failures[-1]!r}")


async def soak(seconds: float, say: Progress) -> list[Row]:
    """The rows of so many seconds of load.

    Raises:
        AssertionError: the service does not start, or does not come to rest.
    """
    with tempfile.TemporaryDirectory(prefix="pdserve-bench-") as place:
        profile = Path(place) / "profile.json"
        profile.write_text(json.dumps(PROFILE))
        paced = ("--paced", str(profile))
        async with over_engines(1, 1, SLOTS, prefill_args=paced, decode_args=paced) as service:
            watched, sent, ended = Watched(service), Sent(), asyncio.Event()
            assert (await outcome(service.port, completion()))[0] == 200
            clients = [
                asyncio.create_task(client(service.port, seed, sent, ended, say))
                for seed in range(CLIENTS)
            ]
            samples = await _samples(seconds, watched, sent, say)
            ended.set()
            await asyncio.gather(*clients)

            async def nothing_left() -> bool:
                return not await service.left_behind()

            await until(nothing_left, "no request is left", PATIENCE)
    return rows(samples, sent)


async def _samples(
    seconds: float, watched: Watched, sent: Sent, say: Progress
) -> list[dict[str, dict[str, float]]]:
    """Figures by process, at equal distances; progress every minute."""
    clock = asyncio.get_running_loop().time
    began, samples, told = clock(), [], 0
    while (passed := clock() - began) < seconds:
        samples.append(await watched.read())
        if passed // 60 > told:
            told = int(passed // 60)
            sizes = ", ".join(f"{n} {f[RESIDENT] / 2**20:.1f} MiB" for n, f in samples[-1].items())
            say(f"minute {told}: {sent.answered} answered, {sent.left} left; {sizes}")
        await asyncio.sleep(SAMPLE)
    return samples


def rows(samples: list[dict[str, dict[str, float]]], sent: Sent) -> list[Row]:
    """Failures, and what each process has late beside early; `samples` at equal distances."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    asked = sent.answered + len(sent.failures)
    found = [
        Row("requests that failed, and one", len(sent.failures) + 1, "requests",
            "a thousandth of those asked, and one", FAILED * asked + 1, 1.0, "lower", n=asked)
    ]  # fmt: skip
    for name in samples[0]:
        for what, (said, unit, size, floor) in FIGURES.items():
            then, now = ([s[name][what] / size for s in part] for part in (early, late))
            found.append(
                Row(f"{said}, {name}, last quarter", median(now), unit, "second quarter",
                    median(then), floor, "lower", n=len(now), spread=max(now) - min(now))
            )  # fmt: skip
    return found


def main() -> int:
    """0: every floor held; 1: one failed; 130: interrupted."""
    parser = argparse.ArgumentParser(prog="make bench-soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"of load (default: {MINUTES:g})"
    )
    chosen = parser.parse_args()
    if not chosen.minutes >= 0.5:
        parser.error("--minutes must be at least 0.5: fewer samples say nothing")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return concluded("soak", soak(chosen.minutes * 60, Progress()))


if __name__ == "__main__":
    sys.exit(main())
