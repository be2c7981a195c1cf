"""Probes: one request to a container, and what a series of answers means.

`ask` does the I/O; `ProbeVerdict` counts answers against thresholds and is pure. gRPC probes are
not supported: they fail, with a message that says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from pdserve.terms.json import JsonMap

RunInside = Callable[[list[str]], Awaitable[tuple[int, str]]]
"""Run a command in the container: argv -> (exit code, output); killed when cancelled."""


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """Timing of a probe with Kubernetes' defaults filled in; seconds."""

    raw: JsonMap
    initial_delay: float
    period: float
    timeout: float
    successes: int
    failures: int

    @staticmethod
    def of(raw: JsonMap) -> ProbeSpec:
        """From a container's `startupProbe`, `livenessProbe` or `readinessProbe`."""
        return ProbeSpec(
            raw=raw,
            initial_delay=float(raw.get("initialDelaySeconds") or 0),
            period=float(raw.get("periodSeconds") or 10),
            timeout=float(raw.get("timeoutSeconds") or 1),
            successes=int(raw.get("successThreshold") or 1),
            failures=int(raw.get("failureThreshold") or 3),
        )


@dataclass(slots=True)
class ProbeVerdict:
    """Turns single answers into a state that changes only after enough equal ones in a row."""

    spec: ProbeSpec
    _last: bool | None = None
    _row: int = 0

    def add(self, ok: bool) -> bool | None:
        """Count an answer; True or False once its threshold in a row is reached, None before."""
        self._row = self._row + 1 if ok is self._last else 1
        self._last = ok
        if self._row >= (self.spec.successes if ok else self.spec.failures):
            return ok
        return None


class ProbeTarget:
    """Where the probes of one container go."""

    def __init__(
        self,
        container: JsonMap,
        pod_ip: str,
        session: aiohttp.ClientSession,
        run_inside: RunInside,
    ) -> None:
        self._container = container
        self._ip = pod_ip
        self._session = session
        self._run = run_inside

    async def ask(self, action: JsonMap, seconds: float | None) -> tuple[bool, str]:
        """Do a probe's (or hook's) action once: did it succeed, and what was said.

        `seconds`: how long it may take; None: as long as it likes.
        """
        try:
            async with asyncio.timeout(seconds):
                if "httpGet" in action:
                    return await self._http(action["httpGet"])
                if "tcpSocket" in action:
                    return await self._tcp(action["tcpSocket"])
                if "exec" in action:
                    code, output = await self._run(list(action["exec"]["command"]))
                    return code == 0, output
        except TimeoutError:
            return False, "timed out" if seconds is None else f"timed out after {seconds:g} s"
        except (OSError, aiohttp.ClientError) as error:
            return False, str(error)
        return False, f"{', '.join(sorted(action))}: not supported on process nodes"

    async def _http(self, action: JsonMap) -> tuple[bool, str]:
        scheme = str(action.get("scheme") or "HTTP").lower()
        host = action.get("host") or self._ip
        path = "/" + str(action.get("path") or "/").lstrip("/")
        url = f"{scheme}://{host}:{self._port(action['port'])}{path}"
        headers = {h["name"]: h["value"] for h in action.get("httpHeaders") or ()}
        headers.setdefault("User-Agent", "kube-probe/1.36")
        async with self._session.get(url, headers=headers, allow_redirects=False) as reply:
            await reply.read()
            return 200 <= reply.status < 400, f"HTTP probe: statuscode {reply.status}"

    async def _tcp(self, action: JsonMap) -> tuple[bool, str]:
        host = action.get("host") or self._ip
        _, writer = await asyncio.open_connection(host, self._port(action["port"]))
        writer.close()
        return True, "connected"

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        for known in self._container.get("ports") or ():
            if known.get("name") == port:
                return int(known["containerPort"])
        if str(port).isdecimal():
            return int(port)
        raise OSError(f"port {port!r}: the container names no such port")
