"""What the linker sends to instances over real HTTP, and which answers it takes."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.support.linker_values import HELD, TERMS, table

from pdserve.controllers.shared.instance_calls import EngineError, HttpEngines, Target
from pdserve.desired.service_credentials import ServiceCredentials
from pdserve.kube.errors import KubeError
from pdserve.wire import calls
from pdserve.wire.bounds import WireError
from pdserve.wire.credentials import Grant, control_token, digest, pair_key
from pdserve.wire.links import DrainReport, LinkReport


class Instance:
    """An HTTP server that follows the container contract."""

    def __init__(self) -> None:
        self.table: Any = None
        self.up: list[str] = []
        self.seen: list[tuple[str, str, str]] = []
        self.answer: Callable[[], web.Response] | None = None
        self.handle_all: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.takes = ""
        """The only credential it takes; empty: any."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.handle_all is not None:
            return await self.handle_all(request)
        self.seen.append((request.method, request.path, request.headers["Authorization"]))
        if self.takes and request.headers["Authorization"] != self.takes:
            return web.Response(status=401)
        if self.answer is not None:
            return self.answer()
        if request.path == calls.PATH_PEERS:
            self.table = await request.json()
            return web.json_response({})
        if request.path == calls.PATH_DRAIN:
            return web.json_response(DrainReport(0, 0, 0).to_json())
        version = self.table["version"] if self.table else 0
        down = {} if self.up else {"d0": "handshake"}
        return web.json_response(LinkReport(version, frozenset(self.up), down).to_json())


@asynccontextmanager
async def instance(seconds: float = 30.0) -> AsyncIterator[tuple[Instance, Target, HttpEngines]]:
    served = Instance()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, port = runner.addresses[0]

    async def credentials(service: str) -> ServiceCredentials:
        return HELD

    async with aiohttp.ClientSession() as session:
        target = Target(
            "p0", "c1", f"http://127.0.0.1:{port}", "prod/shop", "Reference", table(3), poll=True
        )
        yield served, target, HttpEngines(session, credentials, seconds)
    await runner.cleanup()


async def test_requests_carry_the_instances_token_and_the_table() -> None:
    async with instance() as (served, target, engines):
        await engines.put_peers(target, table(3))
        assert served.table["version"] == 3
        report = await engines.get_links(target)
        assert (report.version, report.complete) == (3, False)
        assert (await engines.post_drain(target)).idle
        bearer = f"Bearer {control_token('op', 'prod', 'p0')}"
        assert served.seen == [
            ("PUT", calls.PATH_PEERS, bearer),
            ("GET", calls.PATH_LINKS, bearer),
            ("POST", calls.PATH_DRAIN, bearer),
        ]


async def test_the_grant_goes_with_the_table_and_holds_what_this_instance_needs() -> None:
    async with instance() as (served, target, engines):
        await engines.put_peers(dataclasses.replace(target, terms=TERMS), table(3))
        grant = Grant.from_json(served.table["credentials"])
        assert grant.revision == HELD.revision
        assert grant.control == (digest(control_token("op", "prod", "p0")),)
        assert grant.request == (digest("gw"),)
        assert grant.peers["d0"].keys == (pair_key("kv", "prod/shop-chat-0", "p0", "d0"),)
        assert set(grant.peers) == {"d0"}
        text = json.dumps(served.table)
        for secret in (*HELD.control, *HELD.request, HELD.shared):
            assert f'"{secret}"' not in text


async def test_an_older_engine_is_asked_with_the_shared_token_and_that_is_remembered() -> None:
    async with instance() as (served, target, engines):
        served.takes = "Bearer old"
        await engines.get_links(target)
        await engines.get_links(target)
        used = [bearer for _, _, bearer in served.seen]
        assert used == [f"Bearer {control_token('op', 'prod', 'p0')}", "Bearer old", "Bearer old"]


async def test_a_newer_table_at_the_instance_is_no_error() -> None:
    async with instance() as (served, target, engines):
        served.answer = lambda: web.json_response({"version": 9}, status=409)
        await engines.put_peers(target, table(3))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=401, text="wrong token"),
        lambda: web.Response(status=422, text="not in the table"),
        lambda: web.Response(status=500),
    ],
    ids=["401", "422", "500"],
)
async def test_bad_answers_are_one_kind_of_error(answer: Callable[[], web.Response]) -> None:
    async with instance() as (served, target, engines):
        served.answer = answer
        with pytest.raises(EngineError):
            await engines.get_links(target)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirection_is_followed(status: int) -> None:
    async with instance() as (other, elsewhere, _), instance() as (served, target, engines):
        served.answer = lambda: web.Response(
            status=status, headers={"Location": elsewhere.endpoint + "/internal"}
        )
        for ask in (engines.get_links, engines.post_drain):
            with pytest.raises(EngineError, match=f"HTTP {status}"):
                await ask(target)
        with pytest.raises(EngineError, match=f"HTTP {status}"):
            await engines.put_peers(target, table(3))
        assert other.seen == []


@functools.cache
def _bomb(encoding: str) -> bytes:
    """64 MiB of zeros, packed."""
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
@pytest.mark.parametrize("status", [200, 500])
async def test_no_encoded_answer_is_unpacked(encoding: str, status: int) -> None:
    packed = _bomb(encoding)
    async with instance() as (served, target, engines):
        asked: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            asked.append(request.headers.get("Accept-Encoding", ""))
            response = web.StreamResponse(status=status, headers={"Content-Encoding": encoding})
            await response.prepare(request)
            await response.write(packed)
            return response

        served.handle_all = answer
        tracemalloc.start()
        try:
            with pytest.raises(EngineError, match="encoded as"):
                await engines.get_links(target)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert asked == ["identity"]
        assert peak < 16 << 20


async def test_an_endless_answer_is_cut_off() -> None:
    async with instance() as (served, target, engines):

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            with suppress(ConnectionError):
                while True:
                    await response.write(b" " * 65_536)
            return response

        served.handle_all = answer
        with pytest.raises(WireError, match="at most"):
            await engines.get_links(target)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="<html>"),
        lambda: web.Response(text='{"version":1e999,"up":[],"down":{}}'),
        lambda: web.Response(text="[" * 200_000),
        lambda: web.Response(body=b'{"version": 1, "up": ["\xff"], "down": {}}'),
        lambda: web.Response(text='"x"', content_type="text/plain", charset="utf-7"),
        lambda: web.Response(
            body=b"{}", headers={"Content-Type": "application/json; charset=klingon"}
        ),
        lambda: web.Response(text=" " * (2 << 20)),
        lambda: web.json_response({"version": 2**70, "up": [], "down": {}}),
        lambda: web.json_response({"version": 1, "up": {"a": 1}, "down": {}}),
        lambda: web.json_response({"version": 1, "up": [[]], "down": {}}),
    ],
)
async def test_answers_that_cannot_be_read_are_wire_errors(
    answer: Callable[[], web.Response],
) -> None:
    async with instance() as (served, target, engines):
        served.answer = answer
        with pytest.raises(WireError):
            await engines.get_links(target)
        with pytest.raises(WireError):
            await engines.post_drain(target)


async def test_a_missing_token_is_the_same_kind_of_error() -> None:
    async def gone(_: str) -> ServiceCredentials:
        raise KubeError(404, "NotFound", 'secrets "shop-token" not found')

    async with instance() as (_, target, _), aiohttp.ClientSession() as session:
        with pytest.raises(EngineError, match=r'no credentials: .*secrets "shop-token" not found'):
            await HttpEngines(session, gone).get_links(target)


async def test_a_silent_instance_times_out() -> None:
    async def never(_reader: Any, _writer: Any) -> None:
        await asyncio.sleep(5)

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with instance(seconds=0.5) as (_, target, engines):
        port = server.sockets[0].getsockname()[1]
        away = Target("p0", "c1", f"http://127.0.0.1:{port}", target.service, target.engine)
        with pytest.raises(EngineError, match="Timeout"):
            await engines.get_links(away)
    server.close()
