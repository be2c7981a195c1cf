"""A gateway as a process of its own, over stub engines, for what only a process shows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.support.gateway_rig import PATIENCE
from tests.support.stub_engine import TOKEN, StubEngine

from pdserve.terms import Slo
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario, RouteTable


def write_routes(
    path: Path,
    slo: Slo,
    *engines: StubEngine | RouteInstance,
    version: int = 1,
    model: str = "tiny",
    **scenario: Any,
) -> None:
    """One scenario `chat` over one group of these engines; `scenario`: its further fields."""
    made = tuple(e if isinstance(e, RouteInstance) else e.route() for e in engines)
    chat = RouteScenario("chat", slo, (RouteGroup(0, "r1", made),), **scenario)
    table = RouteTable("shop", version, model, "Reference", (chat,))
    path.write_text(json.dumps(table.to_json()))


class GatewayProcess:
    """Started with `start`; `lines` holds its access log."""

    def __init__(self, routes: Path, *arguments: str, token: str = TOKEN) -> None:
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("PDSERVE_")}
        self._env["PDSERVE_TOKEN"] = token
        self._command = [
            sys.executable, "-m", "pdserve.gateway", "--port", "0",
            "--routes", f"file:{routes}", *arguments,
        ]  # fmt: skip
        self.port = 0
        self.lines: list[dict[str, Any]] = []
        self._process: asyncio.subprocess.Process = None  # type: ignore[assignment]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> GatewayProcess:
        """Return when it listens and has a route table."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=self._env,
        )  # fmt: skip
        assert process.stderr is not None
        said = b""
        async with asyncio.timeout(PATIENCE):
            while not (self.port and b"serving route table" in said):
                line = await process.stderr.readline()
                assert line, f"the gateway ended: {said.decode()}"
                said += line
                if b"listening on" in line:
                    self.port = int(line.strip().rsplit(b":", 1)[1])
        self._tasks = [asyncio.create_task(self._read_log()), asyncio.create_task(self._drop())]
        return self

    @property
    def rss(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    async def kill(self) -> None:
        """Kill it (-9) and wait for its end."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read_log(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.lines.append(json.loads(line))

    async def _drop(self) -> None:
        assert self._process.stderr is not None
        while await self._process.stderr.readline():
            pass
