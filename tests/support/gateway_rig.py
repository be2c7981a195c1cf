"""A gateway with real sockets on both sides, for tests: stub engines, a route table, a client."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from tests.support.stub_engine import TOKEN, Cluster, StubEngine

from pdserve.engines.credentials import Credential
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.gateway.auth import KeyRing
from pdserve.http1.limits import ClientLimits
from pdserve.terms import Slo
from pdserve.terms.limits import NO_LIMITS
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

SLO = Slo(ttft=60.0, handoff=60.0, tpot=60.0, attainment=0.99)
"""Targets that a machine meets however busy it is."""
PATIENCE = 60.0
"""Seconds within which anything that a test waits for must have happened."""


class PushSource:
    """A route source that a test pushes tables into."""

    def __init__(self) -> None:
        self._tables: asyncio.Queue[RouteTable] = asyncio.Queue()
        self._applied = asyncio.Event()

    async def run(self, apply: Callable[[RouteTable], None]) -> None:
        while True:
            apply(await self._tables.get())
            self._applied.set()

    async def push(self, table: RouteTable) -> None:
        self._applied.clear()
        await self._tables.put(table)
        await self._applied.wait()


@dataclasses.dataclass
class Answer:
    """One HTTP reply, read whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Parsed SSE events; `[DONE]` as text."""
        data = [e[6:] for e in self.body.split(b"\n\n") if e.startswith(b"data: ")]
        return [e.decode() if e == b"[DONE]" else orjson.loads(e) for e in data]

    @property
    def text(self) -> str:
        """The completion's text, streamed or not."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            parts = [
                e["choices"][0] for e in self.events if isinstance(e, dict) and e.get("choices")
            ]
            return "".join(p.get("text") or p.get("delta", {}).get("content") or "" for p in parts)
        choice = self.json["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]


class Rig:
    """Start stubs and a gateway over them; everything stops with `close`."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.engines: dict[str, StubEngine] = {}
        self.source = PushSource()
        self.gateway: GatewayServer = None  # type: ignore[assignment]
        self.port = 0
        self.version = 0

    async def engine(
        self, role: Any, name: str, kind: type[StubEngine] = StubEngine, **options: Any
    ) -> StubEngine:
        self.engines[name] = await kind(self.cluster, role, name, **options).start()
        return self.engines[name]

    async def start(self, keys: Path | None = None, **options: Any) -> None:
        options.setdefault("limits", ClientLimits(body=64 << 10))
        options.setdefault("drain_seconds", 2.0)
        ring = KeyRing(keys) if keys else None
        rng = random.Random(options.pop("seed", 7))
        options.setdefault("credential", Credential(TOKEN))
        clock = options.pop("clock", time.monotonic)
        self.gateway = GatewayServer(self.source, GatewayOptions(**options), ring, rng, clock=clock)
        self.port = await self.gateway.start("127.0.0.1", 0)

    async def routes(
        self, *groups: Sequence[StubEngine], slo: Slo = SLO, **scenario: Any
    ) -> RouteTable:
        """Route one scenario `chat` over these groups."""
        self.version += 1
        made = tuple(
            RouteGroup(i, "r1", tuple(e.route() for e in engines))
            for i, engines in enumerate(groups)
        )
        one = RouteScenario(name="chat", slo=slo, groups=made, **scenario)
        table = RouteTable("shop", self.version, "tiny", "Reference", (one,))
        await self.source.push(table)
        return table

    async def one_group(self, prefills: int = 1, decodes: int = 1, **options: Any) -> None:
        """A gateway over one P/D group of stubs named p0.. and d0.. ."""
        slo, limits = options.pop("slo", SLO), options.pop("scenario_limits", NO_LIMITS)
        made = [await self.engine("prefill", f"p{i}") for i in range(prefills)]
        made += [await self.engine("decode", f"d{i}") for i in range(decodes)]
        await self.start(**options)
        await self.routes(made, slo=slo, limits=limits)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request on a fresh connection."""
        return await self._request_at(self.port, method, path, body, headers)

    async def request_at(self, port: int, body: Any) -> Answer:
        """A completion request to the gateway at this port, which may be another one."""
        return await self._request_at(port, "POST", "/v1/completions", body, None)

    async def _request_at(
        self, port: int, method: str, path: str, body: Any, headers: dict[str, str] | None
    ) -> Answer:  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            data = body if isinstance(body, bytes) else orjson.dumps(body) if body else b""
            lines = [f"{method} {path} HTTP/1.1", "host: gateway", f"content-length: {len(data)}"]
            lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
            writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + data)
            async with asyncio.timeout(PATIENCE):
                return parse_answer(await reader.read())
        finally:
            writer.close()

    async def complete(self, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        """A completion request for model `tiny`."""
        body = {"model": "tiny", "prompt": "hello", **body}
        return await self.request("POST", "/v1/completions", body, headers)

    async def chat(self, **body: Any) -> Answer:
        """A chat request for model `tiny`."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **body}
        return await self.request("POST", "/v1/chat/completions", body)

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the gateway's series of this name with these labels."""
        text = (await self.request("GET", "/metrics")).body.decode()
        return sum(metric_values(text, name, labels))

    async def close(self) -> None:
        if self.gateway is not None:
            await self.gateway.stop()
        for engine in self.engines.values():
            await engine.kill()


def metric_values(text: str, name: str, labels: dict[str, str]) -> list[float]:
    """Values of the series in an exposition that have the name and at least these labels."""
    values = []
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(
            f'{k}="{v}"' in series for k, v in labels.items()
        ):
            values.append(float(value))
    return values


def parse_answer(raw: bytes) -> Answer:
    """A whole HTTP/1.1 reply."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        rest = _unchunk(rest)
    return Answer(int(first.split(" ")[1]), headers, rest)


def _unchunk(data: bytes) -> bytes:
    out = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        out.append(data[:length])
        data = data[length + 2 :]
        if length == 0:
            break
    return b"".join(out)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; fail with `what` after PATIENCE."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE
    while not condition():
        assert loop.time() < until, f"never: {what}"
        await asyncio.sleep(0.002)
