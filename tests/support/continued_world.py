"""Real engines whose decodes are lost in the middle of a reply, behind a gateway.

Used by the tests and the bench of continued streams.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import orjson
from tests.support.engines import TOKEN, Client, EngineProcess, Group, until
from tests.support.event_cutter import Cut, EventCutter
from tests.support.gateway_rig import PushSource, metric_values

from pdserve.engines.credentials import Credential
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario, RouteTable

SLO = Slo(ttft=60.0, handoff=60.0, tpot=1.0, attainment=0.9)


@dataclass
class ContinuedWorld:
    """One prefill, two decodes behind cutters, and the gateway before them."""

    cuts: list[Cut]
    url: str
    session: aiohttp.ClientSession
    arrivals: list[float] = field(default_factory=list)
    """When the events of the last stream came, in seconds of `time.perf_counter`."""

    async def stream(self, path: str, body: dict[str, Any], *cuts: Cut) -> list[Any]:
        """The events of one answer; its decodes are cut after so many of theirs."""
        self.cuts[:], self.arrivals = cuts, []
        asked = {"model": "shop", "stream": True, "stream_options": {"include_usage": True}, **body}
        raw = b""
        async with self.session.post(self.url + path, data=orjson.dumps(asked)) as answer:
            async for piece in answer.content.iter_any():
                raw += piece
                self.arrivals += [time.perf_counter()] * piece.count(b"\n\n")
        assert answer.status == 200, raw
        assert not self.cuts, "nothing was cut"
        data = [e[6:] for e in raw.split(b"\n\n") if e]
        return [e.decode() if e == b"[DONE]" else orjson.loads(e) for e in data]

    async def whole(self, path: str, body: dict[str, Any], *cuts: Cut) -> Any:
        """One answer sent whole; its decodes are cut so many seconds after they have the KV.

        A decode that ends before is not cut.
        """
        self.cuts[:] = cuts
        asked = {"model": "shop", **body}
        async with self.session.post(self.url + path, data=orjson.dumps(asked)) as answer:
            raw = await answer.read()
            assert answer.status == 200, raw
        return orjson.loads(raw)

    async def continued(self) -> float:
        """Streams that went on, so far."""
        async with self.session.get(self.url + "/metrics") as answer:
            return sum(metric_values(await answer.text(), names.GATEWAY_CONTINUED, {}))

    async def local(self, result: str = "served") -> float:
        """Prompts that decodes were asked to compute, so far, with this result."""
        async with self.session.get(self.url + "/metrics") as answer:
            text = await answer.text()
        return sum(metric_values(text, names.GATEWAY_LOCAL_PREFILLS, {"result": result}))


@asynccontextmanager
async def continued_world(**scenario: Any) -> AsyncIterator[ContinuedWorld]:
    """All of it, running; `scenario`: more of what is routed."""
    client = Client()
    prefill = EngineProcess("prefill", ("--slots", "4"))
    decodes = [EngineProcess("decode", ("--slots", "4")) for _ in range(2)]
    started, cuts = [prefill, *decodes], list[Cut]()
    cutters = [EventCutter(cuts, d.host) for d in decodes]
    source, options = PushSource(), GatewayOptions(credential=Credential(TOKEN), drain_seconds=1.0)
    gateway = GatewayServer(source, options, rng=random.Random(1))
    session = aiohttp.ClientSession()
    try:
        for each in started:
            each.start()
        for each in started:
            await until(partial(client.up, each), f"{each.name} listens", 60)
        await Group(client, [prefill], decodes).push()
        for cutter in cutters:
            await cutter.start()
        port = await gateway.start("127.0.0.1", 0)
        made = (
            RouteInstance(prefill.name, "prefill", prefill.url, 4),
            *(
                RouteInstance(d.name, "decode", c.url, 4)
                for d, c in zip(decodes, cutters, strict=True)
            ),
        )
        groups = (RouteGroup(0, "r1", made),)
        one = RouteScenario("chat", SLO, groups, models=("shop",), **scenario)
        await source.push(RouteTable("shop", 1, "reference", "Reference", (one,)))
        yield ContinuedWorld(cuts, f"http://127.0.0.1:{port}", session)
    finally:
        await session.close()
        await gateway.stop()
        for cutter in cutters:
            await cutter.close()
        for each in started:
            each.kill()
        await client.close()


def essence(events: list[Any]) -> dict[str, Any]:
    """What a client learns from a stream, beside what differs from one request to the next."""
    assert not [e for e in events if "error" in e], events[-1]
    assert events.pop() == "[DONE]"
    assert len({(e["id"], e["created"], e["model"], e["object"]) for e in events}) == 1
    *shown, last = events
    choices = [e["choices"][0] for e in shown]
    deltas = [c.get("delta", {}) for c in choices]
    text = [c.get("text") or d.get("content") for c, d in zip(choices, deltas, strict=True)]
    return {
        # One that its prefill ends has an event of its own for the end.
        "text": [t for t in text if t],
        "roles": [d["role"] for d in deltas if "role" in d],
        "logprobs": [c["logprobs"] for c in choices if c.get("logprobs")],
        "reasons": [c["finish_reason"] for c in choices if c["finish_reason"]],
        "usage": [e["usage"] for e in shown if e["usage"]] + [last["usage"]],
    }
