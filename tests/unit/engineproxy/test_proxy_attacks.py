"""What a gateway, a peer or another process could make a proxy do, or keep, that it must not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.support.gateway_rig import PATIENCE, eventually, metric_values, parse_answer
from tests.support.proxy_rig import KEEP, TOKEN, ProxyRig, ask, kv, rig
from tests.unit.engineproxy.test_proxy_hostile import whole

from pdserve.engineproxy import decode_leg, routes
from pdserve.engineproxy.peer_checks import PATH_PULLED, PeerChecks
from pdserve.engines.credentials import Credential
from pdserve.engines.trust import Trust
from pdserve.http1.receive import HttpRequest
from pdserve.terms.json import JsonObject
from pdserve.wire import metrics
from pdserve.wire.credentials import proxy_token
from pdserve.wire.peers import Peer, PeerTable


@pytest_asyncio.fixture
async def group() -> AsyncIterator[ProxyRig]:
    async with rig() as made:
        yield made


@pytest.mark.parametrize("name", ["p0", "d0"])
async def test_a_leg_of_both_roles_is_refused(group: ProxyRig, name: str) -> None:
    """A prefill would pull KV from anywhere; a decode would hold KV that has no place."""
    instance = group.instances[name]
    params = {**kv(await group.instances["p0"].generate("a")), **KEEP, "do_remote_prefill": True}
    before = instance.stub.events["requests"]
    answer = await instance.generate("b", kv_transfer_params=params)
    assert (answer.status, answer.json["error"]["code"]) == (400, "wrong_role")
    assert instance.stub.events["requests"] == before


@pytest.mark.parametrize("where", [{"remote_host": "192.0.2.1"}, {"remote_port": 1}, "another's"])
async def test_a_peer_has_no_kv_freed_but_its_own(group: ProxyRig, where: Any) -> None:
    """An engine that refuses a leg connects to the address in it."""
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    if where == "another's":
        other = await group.add("prefill", "p1")
        await group.link()
        params = kv(await other.generate("a"))
    else:
        params = {**params, **where}
    token = {"authorization": f"Bearer {proxy_token(TOKEN, 'p0', 'd0')}"}
    body = {"from": "p0", "kv_transfer_params": params}
    answer = await ask(d.port, "POST", "/pdserve/v1/peer/discard", body, token)
    assert answer.status == 400
    assert d.stub.events["requests"] == 0


@pytest.mark.parametrize(
    "body", [b'{"error":{"message":"m"}}', b"[]", b"7", b'{"choices":[]}', b'{"choices":5}']
)
async def test_a_whole_reply_without_a_choice_is_no_pull(group: ProxyRig, body: bytes) -> None:
    p, d = group.instances["p0"], group.instances["d0"]
    params = kv(await p.generate("a"))
    d.stub.raw = whole(body)
    answer = await d.generate(kv_transfer_params=params)
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (502, "kv_failed")
    assert p.held == 1


class Fields(dict[str, Any]):
    """A body that can be watched while it lives."""


async def test_a_decode_keeps_no_body_while_its_engine_generates(
    group: ProxyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's proxy has little memory, and as many requests as its engine has slots."""
    seen: list[tuple[HttpRequest, weakref.ref[Fields]]] = []

    def watched(request: HttpRequest) -> JsonObject:
        fields = Fields(body_of(request))
        seen.append((request, weakref.ref(fields)))
        return fields

    body_of = decode_leg.body_of
    monkeypatch.setattr(decode_leg, "body_of", watched)
    p, d = group.instances["p0"], group.instances["d0"]
    for stream in (True, False):
        params = kv(await p.generate("a"))
        d.stub.token_gate = asyncio.Event()
        running = asyncio.create_task(d.generate(kv_transfer_params=params, stream=stream))
        await eventually(lambda: d.stub.running == 1, "it runs")
        gc.collect()
        ((request, fields),) = seen
        assert (request.body, fields()) == (b"", None)
        d.stub.token_gate.set()
        assert (await running).status == 200
        seen.clear()


async def test_scrapes_at_once_count_each_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that come in another order are no engine that began anew."""
    asked, late = itertools.count(), asyncio.Event()

    async def get(*_: object) -> tuple[int, bytes]:
        if next(asked):
            return 200, b"steps 101\n"
        await late.wait()
        return 200, b"steps 100\n"

    async with rig() as made:
        d = await made.add("decode", "d1", series={metrics.DECODE_STEPS: "steps"})
        monkeypatch.setattr(routes, "get", get)
        first = asyncio.create_task(d.ask("GET", "/metrics"))
        await eventually(lambda: repr(asked) != "count(0)", "the engine is asked")
        second = asyncio.create_task(d.ask("GET", "/metrics"))
        await asyncio.wait([second], timeout=0.2)  # it waits for the first, or is answered
        late.set()
        await asyncio.gather(first, second)
        text = (await d.ask("GET", "/metrics")).body.decode()
        assert metric_values(text, metrics.DECODE_STEPS, {}) == [101]


async def test_connections_to_peers_that_left_are_closed() -> None:
    closed = asyncio.Event()

    async def peer_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = False
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                told = told or head.startswith(b"POST")
                size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(size or 0))
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        if told:
            closed.set()
        writer.close()

    server = await asyncio.start_server(peer_proxy, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    me, peer = Peer("d0", "decode", url, "a:1", "r1"), Peer("p0", "prefill", url, "b:1", "r1")
    checks = PeerChecks("d0", "decode", Trust(TOKEN))
    checks.accept(PeerTable("g", 1, (me, peer)))
    assert await checks.tell(peer, PATH_PULLED, {})
    assert not closed.is_set()
    checks.accept(PeerTable("g", 2, (me,)))
    async with asyncio.timeout(PATIENCE):
        await closed.wait()
    checks.close()
    server.close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"),
        ("PUT", "/pdserve/v1/peers"), ("POST", "/pdserve/v1/release"),
        ("POST", "/pdserve/v1/drain"), ("GET", "/pdserve/v1/links"),
        ("POST", "/pdserve/v1/peer/pulled"), ("POST", "/pdserve/v1/peer/discard"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer \u00ff"])
async def test_without_a_credential_nothing_is_read_of_a_body(
    method: str, path: str, given: str
) -> None:
    async with rig(request=Credential("gateways")) as made:
        port = made.instances["p0"].port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{method} {path} HTTP/1.1\r\nauthorization: {given}\r\n"
        writer.write(f"{head}content-length: 4000000\r\n\r\n".encode("latin-1"))
        async with asyncio.timeout(PATIENCE):
            answer = parse_answer(await reader.readuntil(b"}}"))
        assert (answer.status, answer.json["error"]["code"]) == (401, "unauthorized")
        writer.close()
