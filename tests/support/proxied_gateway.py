"""A gateway over engines behind proxies, in this process; a client that asks it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.gateway_rig import SLO, Answer, PushSource
from tests.support.proxy_rig import TOKEN, ask

from pdserve.engines.credentials import Credential
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.terms import Slo
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario, RouteTable


@dataclass
class ProxiedGateway:
    """A running gateway; routes are pushed by the test."""

    model: str
    type_name: str = "vLLM"
    source: PushSource = field(default_factory=PushSource)
    port: int = 0
    version: int = 0

    async def route(self, instances: Iterable[RouteInstance], slo: Slo = SLO, **more: Any) -> None:
        self.version += 1
        groups = (RouteGroup(0, "r1", tuple(instances)),)
        scenario = RouteScenario("chat", slo, groups, **more)
        await self.source.push(
            RouteTable("shop", self.version, self.model, self.type_name, (scenario,))
        )

    async def complete(self, **body: Any) -> Answer:
        body = {"model": self.model, "prompt": "x", **body}
        return await ask(self.port, "POST", "/v1/completions", body)

    async def chat(self, **body: Any) -> Answer:
        messages = [{"role": "user", "content": "x"}]
        body = {"model": self.model, "messages": messages, **body}
        return await ask(self.port, "POST", "/v1/chat/completions", body)


@contextlib.asynccontextmanager
async def gateway(model: str, type_name: str = "vLLM") -> AsyncIterator[ProxiedGateway]:
    made = ProxiedGateway(model, type_name)
    options = GatewayOptions(credential=Credential(TOKEN), drain_seconds=0.0)
    server = GatewayServer(made.source, options, rng=random.Random(1))
    made.port = await server.start("127.0.0.1", 0)
    try:
        yield made
    finally:
        await server.stop()
