"""The linker over real HTTP: pushes, polls, drains, keeps reports per container, backs off."""

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

from pdserve.controllers.shared.linker import EngineError, HttpEngines, Linker, Target
from pdserve.desired.service_credentials import ServiceCredentials, Terms
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import ObjectKey
from pdserve.wire import http
from pdserve.wire.bounds import WireError
from pdserve.wire.credentials import Grant, control_token, digest, pair_key
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import Peer, PeerTable

KEY = ObjectKey("prod", "shop-chat")
HELD = ServiceCredentials(("op",), ("gw",), ("kv",), shared="old")
TERMS = Terms(HELD.revision, True, frozenset(), frozenset())


def table(version: int) -> PeerTable:
    return PeerTable(
        "shop-chat-0",
        version,
        (
            Peer("p0", "prefill", "http://127.0.0.1:1", "127.0.0.1:2", "r"),
            Peer("d0", "decode", "http://127.0.0.1:3", "127.0.0.1:4", "r"),
        ),
    )


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
        if request.path == http.PATH_PEERS:
            self.table = await request.json()
            return web.json_response({})
        if request.path == http.PATH_DRAIN:
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
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

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
            ("PUT", http.PATH_PEERS, bearer),
            ("GET", http.PATH_LINKS, bearer),
            ("POST", http.PATH_DRAIN, bearer),
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


Changed = list[ObjectKey]
"""Groups whose links or drains changed, in order."""


class Fake:
    """An EngineApi that needs no network, for virtual time."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.report = LinkReport(1, frozenset(), {"d0": "no"})
        self.busy = 1
        self.failing = False

    def _note(self, what: str) -> None:
        self.calls.append(what)
        if self.failing:
            raise EngineError("refused")

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        self._note(f"put {table.version}")

    async def get_links(self, target: Target) -> LinkReport:
        self._note("links")
        return self.report

    async def post_drain(self, target: Target) -> DrainReport:
        self._note("drain")
        return DrainReport(self.busy, 0, 0)


@asynccontextmanager
async def linking(fake: Fake, changed: Changed) -> AsyncIterator[Linker]:
    linker = Linker(fake, changed.append, period=1.0, max_period=8.0)
    task = asyncio.create_task(linker.run())
    try:
        yield linker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def target(**over: Any) -> Target:
    return Target(**{
        "instance": "p0", "container_id": "c1", "endpoint": "http://x", "service": "prod/shop",
        "engine": "Reference", "table": table(1), "poll": True, **over,
    })  # fmt: skip


@virtual_time
async def test_one_push_then_polls_until_settled_then_silence() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(3.5)
        assert fake.calls == ["put 1", "links", "links", "links", "links"]
        assert changed == [KEY], "the same report twice wakes no reconciler"
        fake.report = LinkReport(1, frozenset({"d0"}), {})
        await asyncio.sleep(1)
        assert changed == [KEY, KEY]
        linker.set_targets(KEY, [target(poll=False)])
        await asyncio.sleep(2)
        before = len(fake.calls)
        await asyncio.sleep(100)
        assert len(fake.calls) == before
        assert linker.attended == 0
        assert linker.links(KEY)["p0"].complete


@virtual_time
async def test_a_newer_table_is_pushed_at_once() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False)])
        await asyncio.sleep(10)
        linker.set_targets(KEY, [target(poll=False, table=table(2))])
        await asyncio.sleep(0.01)
        assert fake.calls[-2:] == ["put 2", "links"]


@virtual_time
async def test_new_terms_are_pushed_with_the_same_table_and_once() -> None:
    fake = Fake()
    changed: Changed = []
    fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, TERMS.revision)
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False, terms=TERMS)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 1
        other = dataclasses.replace(TERMS, required=False)
        linker.set_targets(KEY, [target(poll=False, terms=other)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 2
        legacy = dataclasses.replace(other, known=frozenset({"p0"}))
        linker.set_targets(KEY, [target(poll=False, terms=legacy)])
        await asyncio.sleep(10)
        assert fake.calls.count("put 1") == 2, "that a peer is known changes nothing"


@virtual_time
async def test_an_engine_that_holds_another_grant_gets_the_present_one_again() -> None:
    fake = Fake()
    changed: Changed = []
    fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, "of another operator")
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(poll=False, terms=TERMS)])
        await asyncio.sleep(3.5)
        assert fake.calls.count("put 1") >= 2
        fake.report = LinkReport(1, frozenset({"d0"}), {}, 1, TERMS.revision)
        await asyncio.sleep(10)
        before = len(fake.calls)
        await asyncio.sleep(100)
        assert len(fake.calls) == before


@virtual_time
async def test_a_report_belongs_to_one_container() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(1)
        assert "p0" in linker.links(KEY)
        linker.set_targets(KEY, [target(container_id="c2")])
        assert linker.links(KEY) == {}
        await asyncio.sleep(1)
        assert fake.calls.count("put 1") == 2, "the new process knows no table"


@virtual_time
async def test_an_instance_that_does_not_answer_is_asked_less_and_less() -> None:
    fake = Fake()
    changed: Changed = []
    fake.failing = True
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(60)
        assert 6 <= len(fake.calls) <= 12
        assert changed == []
        fake.failing = False
        await asyncio.sleep(9)
        assert "p0" in linker.links(KEY)


@virtual_time
async def test_a_drain_is_asked_until_idle() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(drain=True, poll=False)])
        await asyncio.sleep(2.5)
        assert set(fake.calls) == {"drain", "put 1"}
        fake.busy = 0
        await asyncio.sleep(3)
        assert linker.drains(KEY)["p0"].idle
        before = len(fake.calls)
        await asyncio.sleep(50)
        assert len(fake.calls) == before


@virtual_time
async def test_a_draining_instance_is_given_new_tables() -> None:
    """Newcomers name it in theirs: until it knows them, their links to it stay down."""
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target(drain=True)])
        await asyncio.sleep(2.5)
        linker.set_targets(KEY, [target(drain=True, table=table(2))])
        await asyncio.sleep(0.01)
        assert fake.calls[-1] == "put 2"
        fake.busy = 0
        await asyncio.sleep(3)
        linker.set_targets(KEY, [target(drain=True, table=table(3))])
        await asyncio.sleep(0.01)
        assert fake.calls[-1] == "put 3", "an idle one still serves what its table promises"


@virtual_time
async def test_forgetting_a_group_ends_its_tasks() -> None:
    fake = Fake()
    changed: Changed = []
    async with linking(fake, changed) as linker:
        linker.set_targets(KEY, [target()])
        await asyncio.sleep(1)
        linker.set_targets(KEY, ())
        before = len(fake.calls)
        await asyncio.sleep(20)
        assert len(fake.calls) == before
        assert linker.links(KEY) == {}


@virtual_time
async def test_silent_instances_of_one_namespace_hold_up_no_others() -> None:
    """Each of theirs takes the whole time-out; there are more of them than requests at once."""

    class Silent(Fake):
        async def get_links(self, target: Target) -> LinkReport:
            if target.instance.startswith("silent"):
                await asyncio.sleep(2)
                raise EngineError("TimeoutError")
            return await super().get_links(target)

    fake = Silent()
    changed: list[ObjectKey] = []
    async with linking(fake, changed) as linker:
        linker.set_targets(
            ObjectKey("slow", "shop-chat"),
            [target(instance=f"silent-{n}", container_id=f"s{n}", poll=True) for n in range(500)],
        )
        await asyncio.sleep(10)
        linker.set_targets(KEY, [target(poll=True)])
        await asyncio.sleep(0.5)
        assert linker.links(KEY)
        assert changed == [KEY]
