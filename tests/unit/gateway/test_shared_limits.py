"""Limits that several gateways share, with real sockets between them and a clock of the test."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from tests.support.gateway_rig import Answer, PushSource, Rig, eventually
from tests.support.stub_engine import TOKEN

from pdserve.engines.credentials import Credential
from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject
from pdserve.forwarding.limit_exchange import answer
from pdserve.gateway.app import GatewayOptions, GatewayServer
from pdserve.gateway.auth import KeyRing
from pdserve.gateway.front import Front
from pdserve.gateway.limit_peers import LimitPeers
from pdserve.http1.pool import Pool
from pdserve.terms.limits import UsageLimits
from pdserve.wire.calls import HEADER_LIMITS, PATH_LIMITS
from pdserve.wire.credentials import limits_token
from pdserve.wire.limit_exchange import LimitReport
from pdserve.wire.routes import RouteGateway, RouteTable


class Fleet:
    """Gateways of one service; the first that was started is named first in their table."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.now = 1000.0
        self.gateways: dict[str, GatewayServer] = {}
        self.sources: dict[str, PushSource] = {}
        self.ports: dict[str, int] = {}
        self.table: RouteTable

    async def start(self, *names: str, keys: Path | None = None) -> None:
        for name in names:
            front = Front(metrics_port=0)
            options = GatewayOptions(
                credential=Credential(TOKEN), own_id=name, front=front, limit_patience=60.0
            )
            self.sources[name] = PushSource()
            ring = None if keys is None else KeyRing(keys)
            gateway = GatewayServer(self.sources[name], options, ring, clock=lambda: self.now)
            self.ports[name] = await gateway.start("127.0.0.1", 0)
            self.gateways[name] = gateway

    async def follow(self, table: RouteTable, *names: str) -> None:
        """Have all gateways serve this table, which lists those named."""
        told = tuple(
            RouteGateway(n, f"http://127.0.0.1:{self.gateways[n].metrics_port}") for n in names
        )
        self.table = dataclasses.replace(table, gateways=told)
        for name, source in self.sources.items():
            if name in self.gateways:
                await source.push(self.table)

    async def complete(self, name: str, **body: object) -> Answer:
        self.rig.port = self.ports[name]
        return await self.rig.complete(**body)  # type: ignore[arg-type]

    async def stop(self, name: str) -> None:
        await self.gateways.pop(name).stop()


@pytest_asyncio.fixture
async def fleet(rig: Rig) -> AsyncIterator[Fleet]:
    fleet = Fleet(rig)
    yield fleet
    for gateway in fleet.gateways.values():
        await gateway.stop()


async def table_of(rig: Rig, limits: UsageLimits, prefills: int = 2) -> RouteTable:
    await rig.one_group(prefills=prefills, decodes=3)
    return await rig.routes(list(rig.engines.values()), limits=limits)


async def test_all_gateways_have_one_limit_of_requests(fleet: Fleet, rig: Rig) -> None:
    await fleet.start("a", "b", "c")
    await fleet.follow(await table_of(rig, UsageLimits(requests=5)), "a", "b", "c")
    left = []
    for name in ("b", "a", "c", "b", "c"):
        answer = await fleet.complete(name)
        assert answer.status == 200
        left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
    assert left == [4, 3, 2, 1, 0]
    for name in ("a", "b", "c"):
        refused = await fleet.complete(name)
        assert refused.status == 429
        assert refused.headers["retry-after"] == "12"
        assert "Limit 5, Used 5, Requested 1" in refused.json["error"]["message"]
    fleet.now += 12.0
    assert [(await fleet.complete(n)).status for n in "bca"] == [200, 429, 429]


async def test_all_gateways_have_one_limit_of_requests_at_once(fleet: Fleet, rig: Rig) -> None:
    await fleet.start("a", "b")
    await fleet.follow(await table_of(rig, UsageLimits(concurrent=2)), "a", "b")
    gate = asyncio.Event()
    for engine in rig.engines.values():
        engine.gate = gate
    one = asyncio.create_task(fleet.complete("b"))
    await eventually(lambda: sum(e.running for e in rig.engines.values()) == 1, "it runs")
    two = asyncio.create_task(fleet.complete("a"))
    await eventually(lambda: sum(e.running for e in rig.engines.values()) == 2, "both run")
    assert (await fleet.complete("a")).status == (await fleet.complete("b")).status == 429
    gate.set()
    assert {(await one).status, (await two).status} == {200}
    for name in ("a", "b"):
        await until_served(fleet, name)


async def until_served(fleet: Fleet, name: str) -> None:
    for _ in range(3000):
        if (await fleet.complete(name)).status == 200:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"gateway {name} never has room again")


async def test_a_keys_limit_holds_over_gateways(fleet: Fleet, rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-alice requestsPerMinute=2\nsk-bob\n")
    await fleet.start("a", "b", keys=tmp_path)
    await fleet.follow(await table_of(rig, UsageLimits()), "a", "b")
    alice = {"authorization": "Bearer sk-alice"}
    statuses = [(await fleet.complete(n, headers=alice)).status for n in ("b", "a", "b", "a")]
    assert statuses == [200, 200, 429, 429]
    assert (await fleet.complete("b", headers={"x-api-key": "sk-bob"})).status == 200
    fleet.now += 30.0
    statuses = [(await fleet.complete(n, headers=alice)).status for n in ("b", "a", "b", "a")]
    assert statuses == [200, 429, 429, 429], "what was learned of the other gateway fades"


async def test_where_the_decider_is_gone_each_has_its_share(
    fleet: Fleet, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await fleet.start("a", "b", "c")
    await fleet.follow(await table_of(rig, UsageLimits(requests=6)), "a", "b", "c")
    assert (await fleet.complete("b")).status == 200
    await fleet.stop("a")
    for name in ("b", "c"):
        statuses = [(await fleet.complete(name)).status for _ in range(4)]
        assert statuses == [200, 200, 429, 429], "a third of the limit"
    assert {g.metrics.by_share.value for g in fleet.gateways.values()} == {1.0}
    complaints = [r.getMessage() for r in caplog.records if "by shares" in r.getMessage()]
    assert len(complaints) == 2, "one line of each gateway"
    await fleet.follow(fleet.table, "b", "c")
    left = int((await fleet.complete("c")).headers["x-ratelimit-remaining-requests"])
    assert fleet.gateways["c"].metrics.by_share.value == 0.0
    assert left <= 4, "the new one knows what the old one had admitted"


async def test_a_decider_that_comes_back_is_asked_again(fleet: Fleet, rig: Rig) -> None:
    await fleet.start("a", "b")
    table = await table_of(rig, UsageLimits(requests=10))
    await fleet.follow(table, "a", "b")
    there, gone = fleet.table, RouteGateway("a", "http://127.0.0.1:1")
    await fleet.sources["b"].push(dataclasses.replace(there, gateways=(gone, there.gateways[1])))
    assert (await fleet.complete("b")).headers["x-ratelimit-limit-requests"] == "5"
    await fleet.sources["b"].push(there)
    assert (await fleet.complete("b")).headers["x-ratelimit-limit-requests"] == "10"


async def test_a_client_that_leaves_right_after_the_verdict_holds_nothing() -> None:
    """It would hold its place for as long as the gateway runs."""
    peers = LimitPeers(Credential(TOKEN), "b", 60.0, lambda: 0.0)
    peers.follow(RouteGateway("a", "http://127.0.0.1:1"))
    key = LimitSubject("key:aa", UsageLimits(tokens=100, concurrent=1))
    task = asyncio.create_task(peers.decide(LimitAsk((key,), 60)))
    await asyncio.sleep(0)
    book = LimitBook()
    for _ in range(2):
        report = peers.outbox.report(0.0)
        assert report is not None
        peers.outbox.answered(report, answer(book, report, 0.0), 0.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert peers.outbox.held(key) == book.limiter(key, 0.0).held(0.0) == 0
    assert book.limiter(key, 0.0).level("tokens", 0.0) == 100


async def test_a_decider_that_was_away_has_what_others_admitted(
    fleet: Fleet, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    read = LimitReport.from_json

    def noted(value: object) -> LimitReport:
        report = read(value)
        heard.append(report.sender)
        return report

    monkeypatch.setattr(LimitReport, "from_json", staticmethod(noted))
    await fleet.start("a", "b")
    table = await table_of(rig, UsageLimits(requests=10))
    await fleet.follow(table, "a", "b")
    for _ in range(4):
        assert (await fleet.complete("a")).status == 200
    await fleet.follow(table, "b")
    await eventually(lambda: "a" in heard, "a says what it admitted")
    left = [(await fleet.complete("b")).headers["x-ratelimit-remaining-requests"] for _ in "12"]
    assert left == ["5", "4"]
    heard.clear()
    await fleet.follow(table, "a", "b")
    await eventually(lambda: "b" in heard, "b says what it admitted")
    assert (await fleet.complete("a")).headers["x-ratelimit-remaining-requests"] == "3"


async def test_only_gateways_of_the_service_may_ask(fleet: Fleet, rig: Rig) -> None:
    await fleet.start("a")
    await fleet.follow(await table_of(rig, UsageLimits(requests=5)), "a")
    pool, endpoint = Pool(), f"http://127.0.0.1:{fleet.gateways['a'].metrics_port}"
    good = orjson.dumps({"from": "x", "states": [], "asks": []})

    async def ask(token: str, body: bytes) -> tuple[int, bytes]:
        headers = ((HEADER_LIMITS.encode(), token.encode()),) if token else ()
        exchange = await pool.post(endpoint, PATH_LIMITS, body, headers, 60.0)
        try:
            return exchange.status, await exchange.read(60.0)
        finally:
            pool.done(endpoint, exchange)

    right = limits_token(TOKEN, "a")
    for token in ("", "x", TOKEN, limits_token(TOKEN, "b"), limits_token("other", "a"), right[:-1]):
        assert (await ask(token, good))[0] == 401
    assert await ask(right, good) == (200, b'{"verdicts":[],"left":[]}')
    for bad in (b"", b"[", b"[]", b'{"from":1}', b"[" * 100_000, b'{"from":"x","states":3}'):
        assert (await ask(right, bad))[0] == 400
    assert (await fleet.complete("a")).status == 200
    pool.close()


async def test_under_load_no_more_than_the_limits_is_ever_served(fleet: Fleet, rig: Rig) -> None:
    await fleet.start("a", "b", "c")
    prefill = await rig.engine("prefill", "p0", slots=64)
    decodes = [await rig.engine("decode", f"d{n}", slots=64) for n in range(2)]
    await rig.start()
    table = await rig.routes([prefill, *decodes], limits=UsageLimits(requests=40, concurrent=5))
    await fleet.follow(table, "a", "b", "c")
    prefill.prefill_seconds = 0.002
    tally: dict[int, int] = {}

    async def client(name: str) -> None:
        used_up = False
        while not used_up:
            answer = await rig.request_at(fleet.ports[name], {"model": "tiny", "prompt": "x"})
            tally[answer.status] = tally.get(answer.status, 0) + 1
            used_up = b"(RPM)" in answer.body

    await asyncio.gather(*(client(name) for name in "abc" * 4))
    assert set(tally) == {200, 429}
    assert tally[200] == 40, "all of the limit and no more: the clock stands"
    assert prefill.max_used <= 5
    assert max(d.max_used for d in decodes) <= 5


async def test_reports_end_when_the_gateway_stops_as_news_come() -> None:
    peers = LimitPeers(Credential(TOKEN), "b", 1.0, lambda: 0.0)
    reports = asyncio.create_task(peers.run())
    for _ in range(3):
        await asyncio.sleep(0)
    peers.follow(RouteGateway("a", "http://127.0.0.1:9"))
    reports.cancel()
    done, _ = await asyncio.wait({reports}, timeout=60)
    assert done == {reports}
    assert reports.cancelled()
