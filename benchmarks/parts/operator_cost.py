"""What the operator costs when nothing happens: CPU per look, writes, memory, CPU per pod event.

The operator measured is a process of the bench's own (`python -m pdserve.controllers`), alone on
the cluster and told to look at everything again twenty times a second: so many looks are there
that the process's idle CPU hardly counts.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from benchmarks.parts.cluster import NAMESPACE, BenchError, until

from localcluster import processes
from localcluster.controlplane import LOOPBACK, free_port
from pdserve import __version__
from pdserve.controllers.shared.caches import SCENARIO_GROUPS, make_caches
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object

LOOK_EVERY = 0.05
WINDOW = 6.0
GETS = 300
EVENTS = 4000
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Idle:
    """An operator whose objects do not change, over `WINDOW` seconds."""

    cpu_ms: float
    """CPU of the whole process."""
    reconciles: int
    writes: int
    """Requests to the API server other than reads."""
    rss_mib: float


@contextmanager
def _operator(kubeconfig: Path, log: Path) -> Iterator[tuple[int, str]]:
    """A process id and the URL of its metrics."""
    port = free_port()
    argv = [
        sys.executable, "-m", "pdserve.controllers", f"--kubeconfig={kubeconfig}",
        "--no-leader-election", f"--bind={LOOPBACK}", f"--metrics-port={port}",
        f"--gateway-image=pdserve/gateway:{__version__}", f"--resync={LOOK_EVERY}",
    ]  # fmt: skip
    process = processes.spawn(argv, log=log)
    try:
        yield process.pid, f"http://{LOOPBACK}:{port}/metrics"
    finally:
        processes.stop(process)


async def idle_operator(kubeconfig: Path, log: Path) -> Idle:
    """Measure it; nothing else may act on the cluster meanwhile."""
    with _operator(kubeconfig, log) as (pid, url):

        async def looks() -> bool:
            return await asyncio.to_thread(_reconciles, url) > 50

        await until("the operator to reconcile", looks)
        await _quiet(url)
        cpu, done, wrote = cpu_ms(pid), _reconciles(url), _writes(url)
        await asyncio.sleep(WINDOW)
        return Idle(
            cpu_ms(pid) - cpu,
            _reconciles(url) - done,
            _writes(url) - wrote,
            rss_mib(pid),
        )


async def _quiet(url: str) -> None:
    """Until two seconds pass without a write: what the change of operators caused is over."""
    last, since = _writes(url), time.monotonic()

    async def settled() -> bool:
        nonlocal last, since
        if (now := _writes(url)) != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 2

    await until("the operator to settle", settled)


async def get_cpu_ms(client: KubeClient, group: str) -> float:
    """CPU of one GET of that ScenarioGroup with its JSON parsed, by the operator's client."""
    unlimited = client.unlimited()
    await unlimited.get(SCENARIO_GROUPS, group, NAMESPACE)
    began = time.process_time()
    for _ in range(GETS):
        await unlimited.get(SCENARIO_GROUPS, group, NAMESPACE)
    return (time.process_time() - began) * 1000 / GETS


def bare_rss_mib() -> float:
    """Of a process that imported the operator's two big libraries and did nothing else."""
    script = "import kopf, kubernetes; print(open('/proc/self/status').read())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return _rss_mib(done.stdout)


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return _rss_mib(Path(f"/proc/{pid}/status").read_text())


def _refuse_skips(_obj: object, where: str, error: Exception) -> None:
    raise BenchError(f"the cache skipped an event in {where}: {error}")


async def event_cpu_us(pod: Object) -> tuple[float, float]:
    """CPU in microseconds per pod event: parsed and taken in by the operator's cache; parsed only.

    The events are changes of a real pod: its phase flips, so each is news to the cache.

    Raises:
        BenchError: the cache did not report every change.
    """
    lines = [_event(pod, number) for number in range(1, EVENTS + 1)]
    began = time.process_time()
    for line in lines:
        orjson.loads(line)
    parsed = time.process_time() - began
    replay = _Replay(lines)
    cache = make_caches(KubeClient(replay), None, Registry(), _refuse_skips).pods
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1

    cache.on_change(count)
    began = time.process_time()
    task = asyncio.create_task(cache.run())
    await replay.ended.wait()
    took = time.process_time() - began
    task.cancel()
    if seen != EVENTS:
        raise BenchError(f"the cache reported {seen} of {EVENTS} changes")
    return took * 1e6 / EVENTS, parsed * 1e6 / EVENTS


def _event(pod: Object, number: int) -> bytes:
    metadata = {**pod["metadata"], "resourceVersion": str(number)}
    status = {**pod["status"], "phase": "Running" if number % 2 else "Pending"}
    obj = {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": metadata, "status": status}
    return orjson.dumps({"type": "MODIFIED" if number > 1 else "ADDED", "object": obj})


class _Replay:
    """A transport whose API server holds nothing, then says these lines and falls silent."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.ended = asyncio.Event()

    async def send(self, request: KubeRequest) -> Object:
        return {"metadata": {"resourceVersion": "0"}, "items": []}

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        for line in self._lines:
            yield orjson.loads(line)
        self.ended.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        return None


def _metrics(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return str(reply.read().decode())
    except OSError:
        return ""


def _reconciles(url: str) -> int:
    found = re.findall(r"^controller_runtime_reconcile_total\{[^}]*\} (\S+)$", _metrics(url), re.M)
    return int(sum(float(value) for value in found))


def _writes(url: str) -> int:
    pattern = r'^rest_client_requests_total\{code="[^"]*",method="([^"]*)"\} (\S+)$'
    found = re.findall(pattern, _metrics(url), re.M)
    return int(sum(float(value) for method, value in found if method != "GET"))


def cpu_ms(pid: int) -> float:
    # Fields 14 and 15; the second, the program's name, may hold spaces and brackets.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / _TICKS


def _rss_mib(status: str) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)
    if found is None:
        raise BenchError("/proc/PID/status has no VmRSS")
    return int(found.group(1)) / 1024
