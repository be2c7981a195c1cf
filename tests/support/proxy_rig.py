"""Engine proxies over vLLM stubs, in this process, with real sockets; a test is the operator."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from tests.support.engines import fresh_host
from tests.support.gateway_rig import PATIENCE, Answer, eventually, parse_answer
from tests.support.sglang_stub import SglangStub
from tests.support.vllm_stub import MODEL, Fabric, VllmStub

from pdserve.engineproxy.leg_context import LegContext
from pdserve.engineproxy.proxy_config import ProxyConfig
from pdserve.engineproxy.server import RunningProxy, running
from pdserve.terms import Role
from pdserve.wire.peers import Peer, PeerTable
from pdserve.wire.routes import RouteInstance

TOKEN = "stub-token"
AUTH = {"authorization": f"Bearer {TOKEN}"}
KEEP = {"do_remote_decode": True, "do_remote_prefill": False}


async def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Answer:  # fmt: skip
    """One request on a fresh connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        data = body if isinstance(body, bytes) else orjson.dumps(body) if body is not None else b""
        lines = [f"{method} {path} HTTP/1.1", "host: proxy", f"content-length: {len(data)}"]
        lines.append("content-type: application/json")
        lines += [f"{k}: {v}" for k, v in {**AUTH, **(headers or {})}.items()]
        writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + data)
        async with asyncio.timeout(PATIENCE):
            return parse_answer(await reader.read())
    finally:
        writer.close()


@dataclasses.dataclass
class Instance:
    """A stub and the proxy before it."""

    name: str
    role: Role
    stub: VllmStub
    config: ProxyConfig
    proxy: RunningProxy
    stack: contextlib.AsyncExitStack

    @property
    def port(self) -> int:
        return self.proxy.port

    @property
    def url(self) -> str:
        return f"http://{self.stub.host}:{self.port}"

    @property
    def transfer(self) -> str:
        return f"{self.stub.host}:{self.stub.side_port}"

    @property
    def context(self) -> LegContext:
        return self.proxy.context

    @property
    def held(self) -> int:
        return self.context.places.holding

    @property
    def executing(self) -> int:
        return self.context.places.executing

    def route(self) -> RouteInstance:
        return RouteInstance(self.name, self.role, self.url, self.config.slots)

    def peer(self) -> Peer:
        return Peer(self.name, self.role, self.url, self.transfer, "r1")

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return await ask(self.port, method, path, body, headers, self.stub.host)

    async def generate(self, name: str = "r", **body: Any) -> Answer:
        """A leg: of a prefill unless the body has `kv_transfer_params`."""
        full = {"model": MODEL, "prompt": "x", **body}
        if not self.config.rooms and self.role == "prefill":
            full = {"max_tokens": 1, "kv_transfer_params": KEEP, **full}
        headers = {"x-request-id": name}
        return await ask(self.port, "POST", "/v1/completions", full, headers, self.stub.host)


class ProxyRig:
    """P/D groups of stubs behind proxies; use `rig()`. `rooms`: SGLang's way."""

    def __init__(self, *, rooms: bool = False) -> None:
        self.rooms = rooms
        self.fabric = Fabric()
        self.instances: dict[str, Instance] = {}
        self.version = 0

    async def add(
        self, role: Role, name: str, *, stub: dict[str, Any] | None = None,
        kind: type[VllmStub] = VllmStub, **config: Any,
    ) -> Instance:  # fmt: skip
        """Start a stub and its proxy, and wait until the proxy sees the engine."""
        server = kind(self.fabric, **(stub or {}))
        if self.rooms:
            server = SglangStub(self.fabric, role, fresh_host(), **(stub or {}))
        await server.start()
        slots = {"slots": 2, "pull_seconds": PATIENCE, "drain_seconds": 0.0, **config}
        made = ProxyConfig(
            role, server.url, server.host, 0, instance=name, token=TOKEN, rooms=self.rooms,
            **{"release_by_refusal": not self.rooms, **slots},
        )  # fmt: skip
        stack = contextlib.AsyncExitStack()
        proxy = await stack.enter_async_context(running(made))
        instance = Instance(name, role, server, made, proxy, stack)
        self.instances[name] = instance
        await eventually(lambda: proxy.context.engine.up, "the engine is up")
        return instance

    async def restart(self, instance: Instance) -> None:
        """Only the proxy starts anew, on its port."""
        config = dataclasses.replace(instance.config, port=instance.port)
        await instance.stack.aclose()
        instance.proxy = await instance.stack.enter_async_context(running(config))

    async def link(self) -> None:
        """Push a table of all instances, and wait until they are ready."""
        self.version += 1
        peers = tuple(i.peer() for i in self.instances.values())
        table = PeerTable("g", self.version, peers).to_json()
        for instance in self.instances.values():
            answer = await instance.ask("PUT", "/pdserve/v1/peers", table)
            assert answer.status == 200, answer.body
        for instance in self.instances.values():
            await eventually(lambda i=instance: i.context.ready, f"{instance.name} is ready")  # type: ignore[misc]

    async def close(self) -> None:
        for instance in self.instances.values():
            await instance.stack.aclose()
            await instance.stub.kill()


@contextlib.asynccontextmanager
async def rig(
    prefills: int = 1,
    decodes: int = 1,
    *,
    state: Path | None = None,
    rooms: bool = False,
    **config: Any,
) -> AsyncIterator[ProxyRig]:
    """One linked P/D group; instances are p0.. and d0.. ."""
    made = ProxyRig(rooms=rooms)
    try:
        for role, count in (("prefill", prefills), ("decode", decodes)):
            for i in range(count):
                name = f"{role[0]}{i}"
                kept = {"state_file": state / name} if state is not None else {}
                await made.add(role, name, **kept, **config)  # type: ignore[arg-type]
        await made.link()
        yield made
    finally:
        await made.close()


def kv(answer: Answer) -> dict[str, Any]:
    """The P/D parameters in a prefill's reply."""
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json["kv_transfer_params"]
    return found
