"""Real reference engine processes on loopback addresses of their own, and the P/D path by hand.

`EngineProcess` is one process; `Group` is one P/D group with its peer table pushed and linked;
`Group.generate` does what a gateway does: prefill leg, then decode leg with the returned params.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from pdserve.engines.reference.metrics import PATH_VLLM
from pdserve.terms import Device
from pdserve.wire import calls
from pdserve.wire.credentials import Grant
from pdserve.wire.peers import Peer, PeerNode, PeerTable
from pdserve.wire.routes import RouteInstance

TOKEN = "test-token"
_numbers = itertools.count(1)


def fresh_host() -> str:
    """A loopback address that no other test process uses: engines can keep their fixed ports."""
    number = next(_numbers)
    return f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}.{number % 250 + 1}"


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 60) -> None:
    """Poll a condition; fails with its name at the deadline."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.02)


@dataclass
class Reply:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class EngineProcess:
    """One `python -m pdserve.refengine` process."""

    role: str
    args: Sequence[str] = ()
    name: str = ""
    host: str = field(default_factory=fresh_host)
    token: str = TOKEN
    """PDSERVE_TOKEN; empty: not set."""
    env: dict[str, str] = field(default_factory=dict)
    devices: Sequence[str | None] = ()
    """Addresses of its devices, as the peer table names them."""
    log: Path | None = None
    """Where its output is appended; None: to the output of this process."""
    members: tuple[EngineProcess, ...] = ()
    """The other members of its instance, made by `with_members`."""
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.name = self.name or f"{self.role}-{self.host.rsplit('.', 1)[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}:8000"

    def peer(self, role: str | None = None) -> Peer:
        devices = tuple(Device(i, ip) for i, ip in enumerate(self.devices))
        nodes: tuple[PeerNode, ...] = (PeerNode("n1", devices),) if devices or self.members else ()
        nodes += tuple(PeerNode(m.host, (), f"{m.host}:5600") for m in self.members)
        peer = Peer(self.name, role or self.role, self.url, f"{self.host}:5600", "r1")  # type: ignore[arg-type]
        return replace(peer, nodes=nodes)

    def route(self, slots: int) -> RouteInstance:
        """Its entry in a route table; it has one role."""
        return RouteInstance(self.name, self.role, self.url, slots)  # type: ignore[arg-type]  # not "both"

    def start(self) -> None:
        for member in self.members:
            member.start()
        env = {k: v for k, v in os.environ.items() if not k.startswith("PDSERVE_")}
        env |= {"PDSERVE_INSTANCE": self.name, **self.env}
        if self.token:
            env["PDSERVE_TOKEN"] = self.token
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "operator")
        command = [sys.executable, "-m", "pdserve.refengine", "--role", self.role]
        command += ["--bind", self.host, *self.args]
        if self.log is None:
            self.process = subprocess.Popen(command, env=env)
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    @property
    def rss(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def with_members(self, count: int) -> EngineProcess:
        """This engine as the leader of an instance of so many processes."""
        env = {**self.env, "PDSERVE_MEMBERS": str(count)}
        self.env = env
        self.members = tuple(
            EngineProcess(
                self.role, self.args, self.name, token=self.token, log=self.log,
                env={**env, "PDSERVE_MEMBER": str(i)},
            )
            for i in range(1, count)
        )  # fmt: skip
        return self

    def kill(self) -> None:
        for member in self.members:
            member.kill()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Client:
    """HTTP to engines; one session, many connections."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def close(self) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        url: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Reply:
        all_headers = dict(headers or {})
        if token is not None:
            all_headers["authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) else (None if body is None else orjson.dumps(body))
        async with self._session.request(method, url, data=data, headers=all_headers) as answer:
            raw = await answer.read()
            try:
                parsed: Any = orjson.loads(raw)
            except orjson.JSONDecodeError:
                parsed = raw.decode()
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, parsed)

    async def up(self, engine: EngineProcess) -> bool:
        if engine.process is not None and engine.process.poll() is not None:
            raise AssertionError(f"{engine.name} exited with {engine.process.returncode}")
        try:
            for member in engine.members:
                if not await self.up(member):
                    return False
            return (await self.call("GET", engine.url + calls.PATH_HEALTH)).status == 200
        except aiohttp.ClientError:
            return False

    async def metric(self, engine: EngineProcess, series: str) -> float:
        path = PATH_VLLM if series.startswith("vllm:") else calls.PATH_METRICS
        text = (await self.call("GET", engine.url + path)).body
        for line in str(text).splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"{series} is not exposed")

    def stream(self, url: str, body: object, headers: dict[str, str] | None = None) -> Any:
        """An open streaming response (async context manager)."""
        return self._session.post(url, data=orjson.dumps(body), headers=headers)


@dataclass
class Group:
    """One P/D group of running, linked engines."""

    client: Client
    prefills: list[EngineProcess]
    decodes: list[EngineProcess]
    version: int = 0
    control: str = TOKEN
    request: str = TOKEN
    grants: Callable[[str], Grant] | None = None
    """By instance: what is pushed beside the table."""

    def routes(self, slots: int) -> tuple[RouteInstance, ...]:
        """The entries of all members in a route table."""
        return tuple(e.route(slots) for e in (*self.prefills, *self.decodes))

    def table(self, version: int) -> PeerTable:
        members = (*self.prefills, *self.decodes)
        return PeerTable("g-0", version, tuple(e.peer() for e in members))

    async def push(self) -> None:
        """Give every engine the next table and wait until all links are up."""
        self.version += 1
        await self.tell()
        for engine in (*self.prefills, *self.decodes):
            await until(lambda e=engine: self.linked(e), f"links of {engine.name}")  # type: ignore[misc]

    async def tell(self) -> None:
        """Push the present table, with the present grants, to every engine."""
        table = self.table(self.version).to_json()
        for engine in (*self.prefills, *self.decodes):
            grant = (
                {} if self.grants is None else {"credentials": self.grants(engine.name).to_json()}
            )
            url = engine.url + calls.PATH_PEERS
            reply = await self.client.call("PUT", url, table | grant, token=self.control)
            assert reply.status == 200, reply.body
            for member in engine.members:
                url = member.url + calls.PATH_PEERS
                reply = await self.client.call("PUT", url, table | grant, token=self.control)
                assert reply.status == 200, reply.body

    async def linked(self, engine: EngineProcess) -> bool:
        url = engine.url + calls.PATH_LINKS
        report = (await self.client.call("GET", url, token=self.control)).body
        if report["version"] != self.version or report["down"]:
            return False
        return not engine.members or await self.ready(engine)

    async def ready(self, engine: EngineProcess) -> bool:
        """Whether `/readyz` says so."""
        return (await self.client.call("GET", engine.url + calls.PATH_READY)).status == 200

    async def prefill(self, path: str, body: dict[str, Any], **headers: str) -> Reply:
        leg = {k: v for k, v in body.items() if k != "stream_options"}
        leg |= {"stream": False, "max_tokens": 1, "max_completion_tokens": 1}
        leg[calls.PARAM_KV] = {"do_remote_decode": True, "do_remote_prefill": False}
        url = self.prefills[0].url + path
        return await self.client.call("POST", url, leg, headers, token=self.request)

    async def decode(
        self, path: str, body: dict[str, Any], params: dict[str, Any], index: int = 0
    ) -> Reply:
        leg = body | {calls.PARAM_KV: params}
        url = self.decodes[index].url + path
        return await self.client.call("POST", url, leg, token=self.request)

    async def generate(self, path: str, body: dict[str, Any], index: int = 0) -> Reply:
        """Both legs; retries while an instance is full, as a gateway would."""
        first = await self.patient(lambda: self.prefill(path, body))
        assert first.status == 200, first.body
        params = first.body[calls.PARAM_KV]
        if params is None:
            return first
        return await self.patient(lambda: self.decode(path, body, params, index))

    async def patient(self, attempt: Callable[[], Awaitable[Reply]]) -> Reply:
        deadline = time.monotonic() + 60
        while True:
            reply = await attempt()
            if reply.status != 503 or time.monotonic() > deadline:
                return reply
            await asyncio.sleep(0.005)


@asynccontextmanager
async def linked_group(prefills: int) -> AsyncIterator[Group]:
    """So many prefills and a decode, of four slots each, running and linked."""
    client = Client()
    started = [EngineProcess("prefill", ("--slots", "4")) for _ in range(prefills)]
    started.append(EngineProcess("decode", ("--slots", "4")))
    try:
        for engine in started:
            engine.start()
        for engine in started:
            await until(lambda e=engine: client.up(e), f"{engine.name} listens")  # type: ignore[misc]  # mypy: a lambda's default
        group = Group(client, started[:-1], started[-1:])
        await group.push()
        yield group
    finally:
        for engine in started:
            engine.kill()
        await client.close()
