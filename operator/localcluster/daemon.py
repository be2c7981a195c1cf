"""The process that is a local cluster: control plane children and the node agent, until SIGTERM.

`cluster` starts it as `python -m localcluster.daemon STATE_DIR`. It holds a lock on a file there as
long as it lives: the lock shows that the cluster runs, which a process id cannot (another process
may have it by now). SIGTERM ends it in order; if it is killed, the kernel kills its children
(`processes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from localcluster import processes
from localcluster.agent.agent import NodeAgent
from localcluster.agent.faults import AdminServer
from localcluster.agent.logs import KubeletServer
from localcluster.controlplane import ControlPlane
from localcluster.errors import LocalError
from localcluster.plan import LOCK, PROBLEM, READY, ClusterPlan
from pdserve.terms.json import JsonObject

_CHECK_SECONDS = 0.5
_LOCK_SECONDS = 5.0
_LOCK_POLL_SECONDS = 0.02


def main(state_dir: Path) -> int:
    """Be the cluster in `state_dir` until SIGTERM; returns the exit status."""
    os.chdir(state_dir)
    with Path(LOCK).open("a") as lock:
        if not _locked(lock):
            print("another process serves this cluster", file=sys.stderr)  # noqa: T201 - its log
            return 1
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            _serve(state_dir)
        except LocalError as error:
            Path(PROBLEM).write_text(str(error), encoding="utf-8")
            print(error, file=sys.stderr)  # noqa: T201 - its log
            return 1
    return 0


def _locked(lock: TextIO) -> bool:
    """Take the lock; who looks whether it is held holds it for a moment too."""
    deadline = processes.Deadline(_LOCK_SECONDS)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if deadline.passed:
                return False
            time.sleep(_LOCK_POLL_SECONDS)  # flock has no time limit of its own
        else:
            return True


def _serve(state_dir: Path) -> None:
    plan = ClusterPlan.load(state_dir)
    began = time.monotonic()
    plane = ControlPlane(state_dir, settings=plan.control_plane, name=plan.name)
    try:
        plane.start(_say)
        asyncio.run(_Cluster(plan, plane, state_dir, began).run())
    finally:
        plane.stop()


class _Cluster:
    """The running parts that need an event loop."""

    def __init__(
        self, plan: ClusterPlan, plane: ControlPlane, state_dir: Path, began: float
    ) -> None:
        self._plan = plan
        self._plane = plane
        self._state_dir = state_dir
        self._began = began
        self._agent = NodeAgent(plan.config, state_dir, plane.server, plan.agent)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; LocalError when a part fails."""
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        admin = AdminServer(self._agent, self._status)
        kubelet = KubeletServer(self._agent, self._plane.state_dir / "pki")
        parts = [
            asyncio.create_task(self._agent.serve(), name="node agent"),
            asyncio.create_task(admin.serve(), name="admin socket"),
            asyncio.create_task(kubelet.serve(), name="kubelet endpoint"),
            asyncio.create_task(self._watch_control_plane(), name="control plane"),
            asyncio.create_task(self._announce(), name="announcement"),
            asyncio.create_task(asked.wait(), name="signal"),
        ]
        try:
            await self._first_end(parts, asked)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _first_end(self, parts: list[asyncio.Task[Any]], asked: asyncio.Event) -> None:
        running = set(parts)
        while not asked.is_set():
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                if (error := part.exception()) is not None:
                    raise LocalError(f"{part.get_name()} failed: {error!r}") from error

    async def _watch_control_plane(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if (problem := self._plane.failed()) is not None:
                raise LocalError(problem)

    async def _announce(self) -> None:
        await self._agent.ready.wait()
        seconds = time.monotonic() - self._began
        _say(f"{len(self._agent.nodes)} process nodes registered, {seconds:.1f} s after start")
        self._write_ready(seconds)

    def _write_ready(self, seconds: float) -> None:
        document = {"server": self._plane.server, "pid": os.getpid(), "seconds": seconds}
        fresh = Path(READY + ".new")
        fresh.write_text(json.dumps(document), encoding="utf-8")
        fresh.rename(READY)

    def _status(self) -> JsonObject:
        pids = self._plane.pids | {"node agent": os.getpid()}
        return {
            "server": self._plane.server,
            "processes": {
                name: {"pid": pid, "rss": processes.rss_bytes(pid)} for name, pid in pids.items()
            },
        }


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"# {line}", flush=True)  # noqa: T201 - lines for the waiting `up`


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
