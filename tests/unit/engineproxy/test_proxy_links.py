"""Peer tables, links, credentials, restarts: the operator's side of the proxy's contract."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.gateway_rig import eventually
from tests.support.proxy_rig import TOKEN, ProxyRig, ask, kv, rig

from pdserve.wire.credentials import Grant, PeerGrant, digest, pair_key, proxy_token
from pdserve.wire.links import LinkReport
from pdserve.wire.peers import Peer, PeerTable


@pytest_asyncio.fixture
async def group() -> AsyncIterator[ProxyRig]:
    async with rig() as made:
        yield made


@contextlib.asynccontextmanager
async def unlinked() -> AsyncIterator[ProxyRig]:
    made = ProxyRig()
    try:
        await made.add("prefill", "p0")
        await made.add("decode", "d0")
        yield made
    finally:
        await made.close()


async def report(made: ProxyRig, name: str) -> LinkReport:
    answer = await made.instances[name].ask("GET", "/pdserve/v1/links")
    return LinkReport.from_json(answer.json)


async def test_ready_means_linked() -> None:
    async with unlinked() as made:
        p, d = made.instances["p0"], made.instances["d0"]
        answer = await p.ask("GET", "/readyz")
        assert (answer.status, answer.json["ready"]) == (503, False)
        assert (await report(made, "p0")).version == 0
        refused = await p.generate("a")
        assert (refused.status, refused.headers["x-pdserve-reject"]) == (503, "not_ready")
        assert p.stub.events["requests"] == 0
        await made.link()
        assert (await p.ask("GET", "/readyz")).status == 200
        for name, peer in (("p0", "d0"), ("d0", "p0")):
            found = await report(made, name)
            assert (found.version, found.up, found.complete) == (1, {peer}, True)
        assert (await d.ask("GET", "/health")).status == 200


async def put(made: ProxyRig, name: str, *peers: Peer, version: int = 1) -> None:
    table = PeerTable("g", version, peers).to_json()
    answer = await made.instances[name].ask("PUT", "/pdserve/v1/peers", table)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"id": "p9"}, "answers 'prefill' 'p0'"),
        ({"transfer": "127.0.0.1:1"}, "Connect call failed"),
        ({"transfer": "nothing"}, "is no host:port"),
        ({"endpoint": "http://127.0.0.1:1"}, "Connect call failed"),
    ],
)
async def test_a_link_is_down_for_a_reason(wrong: dict[str, str], why: str) -> None:
    async with unlinked() as made:
        p, d = (made.instances[n].peer() for n in ("p0", "d0"))
        given = {"id": p.id, "endpoint": p.endpoint, "transfer": p.transfer, **wrong}
        peer = Peer(given["id"], "prefill", given["endpoint"], given["transfer"], "r1")
        await put(made, "d0", peer, d)
        context = made.instances["d0"].context
        await eventually(
            lambda: why in context.peers.report().down.get(peer.id, ""), "the report has the reason"
        )
        assert not context.ready


async def test_a_peer_whose_engine_is_loading_is_not_linked() -> None:
    async with unlinked() as made:
        p, d = made.instances["p0"], made.instances["d0"]
        p.stub.healthy = False
        await eventually(lambda: not p.context.engine.up, "the proxy sees it")
        await put(made, "d0", p.peer(), d.peer())
        down = d.context.peers.report
        await eventually(lambda: "not up" in down().down.get("p0", ""), "the report has the reason")
        p.stub.healthy = True
        await eventually(lambda: d.context.ready, "it is linked")


async def test_a_newer_table_keeps_links_and_drops_peers_that_left(group: ProxyRig) -> None:
    d = group.instances["d0"]
    other = await group.add("prefill", "p1")
    await put(group, "d0", d.peer(), other.peer(), version=2)
    assert d.context.ready, "the links of the old table work"
    await eventually(lambda: d.context.peers.report().complete, "the new one is linked")
    assert d.context.peers.report().up == {"p1"}
    params = kv(await group.instances["p0"].generate("a"))
    answer = await d.generate(kv_transfer_params=params)
    assert answer.headers["x-pdserve-reject"] == "kv_failed"


@pytest.mark.parametrize(
    ("version", "named", "status", "code"),
    [
        (0, "p0", 409, "stale_table"),
        (2, "p7", 422, "not_named"),
        (2, "d0", 422, "wrong_role"),
    ],
)
async def test_tables_that_are_not_taken(
    group: ProxyRig, version: int, named: str, status: int, code: str
) -> None:
    p = group.instances["p0"]
    role = "decode" if named == "d0" else "prefill"
    peer = Peer("p0" if named == "d0" else named, role, "http://127.0.0.1:1", "a:1", "r1")  # type: ignore[arg-type]
    answer = await p.ask("PUT", "/pdserve/v1/peers", PeerTable("g", version, (peer,)).to_json())
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert (await report(group, "p0")).version == 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"schemaVersion":9}', b'{"credentials":7}', b"[" * 99]
)
async def test_tables_that_are_none(group: ProxyRig, body: bytes) -> None:
    answer = await group.instances["p0"].ask("PUT", "/pdserve/v1/peers", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "bad_table")


PRIVATE = [
    ("PUT", "/pdserve/v1/peers"), ("GET", "/pdserve/v1/links"), ("POST", "/pdserve/v1/drain"),
    ("POST", "/pdserve/v1/release"),
    ("POST", "/pdserve/v1/peer/pulled"), ("POST", "/pdserve/v1/peer/discard"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PRIVATE)
@pytest.mark.parametrize("given", ["", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", "Bearer \xff"])
async def test_credentials_are_demanded(
    group: ProxyRig, method: str, path: str, given: str
) -> None:
    p = group.instances["p0"]
    body = {"from": "d0", "request_id": "a"}
    answer = await ask(p.port, method, path, body, {"authorization": given})
    assert answer.status == 401
    assert not p.context.draining


async def test_the_services_token_is_no_peers(group: ProxyRig) -> None:
    """A peer proves the key of its pair, for this direction alone."""
    p = group.instances["p0"]
    await p.generate("a")
    for path in ("/pdserve/v1/peer/pulled", "/pdserve/v1/peer/discard"):
        answer = await p.ask("POST", path, {"from": "d0", "request_id": "a"})
        assert answer.status == 401
    assert p.held == 1


@pytest.mark.parametrize("seconds", [0.5, 1, None, "x", [], {}, -3])
async def test_a_peers_report_frees_a_slot_whatever_else_it_says(
    group: ProxyRig, seconds: object
) -> None:
    p = group.instances["p0"]
    await p.generate("a")
    token = {"authorization": f"Bearer {proxy_token(TOKEN, 'd0', 'p0')}"}
    body = {"from": "d0", "request_id": "a", "seconds": seconds}
    assert (await ask(p.port, "POST", "/pdserve/v1/peer/pulled", body, token)).status == 204
    assert p.held == 0
    discard = await ask(p.port, "POST", "/pdserve/v1/peer/discard", body, token)
    assert discard.status == 400, "a prefill's engine pulls nothing"


async def test_after_a_grant_gateways_and_peers_prove_themselves(group: ProxyRig) -> None:
    p, d = group.instances["p0"], group.instances["d0"]
    key = pair_key("master", "ns/g", "p0", "d0")
    for instance, peer in ((p, "d0"), (d, "p0")):
        grant = Grant(
            "r2", (digest("control"),), (digest("request"),), required=True, shared_token=False,
            peers={peer: PeerGrant((key,))},
        )  # fmt: skip
        table = PeerTable("g", 2, (p.peer(), d.peer())).to_json()
        answer = await instance.ask(
            "PUT", "/pdserve/v1/peers", {**table, "credentials": grant.to_json()}
        )
        assert answer.status == 200, answer.body
    assert (await p.generate("a")).status == 401
    assert (await p.ask("GET", "/pdserve/v1/links")).status == 401
    control = {"authorization": "Bearer control"}
    links = await ask(p.port, "GET", "/pdserve/v1/links", None, control)
    assert LinkReport.from_json(links.json).grant == "r2"
    body = {"model": "m", "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
    request = {"authorization": "Bearer request", "x-request-id": "a"}
    params = kv(await ask(p.port, "POST", "/v1/completions", body, request))
    answer = await ask(
        d.port, "POST", "/v1/completions", {"model": "m", "kv_transfer_params": params}, request
    )
    assert answer.status == 200
    await eventually(lambda: not p.held, "the decode's report was taken")


async def test_a_proxy_that_starts_anew_serves_without_the_operator(tmp_path: Path) -> None:
    """The operator gives a table once for each run of the engine's container."""
    async with rig(state=tmp_path) as made:
        p, d = made.instances["p0"], made.instances["d0"]
        await made.restart(p)
        await eventually(lambda: p.context.ready, "it is ready")
        params = kv(await p.generate("a"))
        assert (await d.generate(kv_transfer_params=params)).status == 200
        assert (tmp_path / "p0").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b"\xff", b"{}", b'{"credentials":{}}'])
async def test_a_broken_state_file_is_as_good_as_none(tmp_path: Path, kept: bytes) -> None:
    async with rig(state=tmp_path) as made:
        p = made.instances["p0"]
        (tmp_path / "p0").write_bytes(kept)
        await made.restart(p)
        assert (await p.ask("GET", "/livez")).status == 200
        assert not p.context.ready
        await made.link()
        assert (tmp_path / "p0").read_bytes() != kept


async def test_paths_that_there_are_not(group: ProxyRig) -> None:
    p = group.instances["p0"]
    assert (await p.ask("GET", "/v1/nothing")).status == 404
    assert (await p.ask("GET", "/v1/completions")).status == 405
    models = await p.ask("GET", "/v1/models")
    assert models.json["data"][0]["max_model_len"] == 2048


async def test_a_stopping_proxy_ends_what_runs() -> None:
    async with rig(drain_seconds=60.0) as made:
        p, d = made.instances["p0"], made.instances["d0"]
        params = kv(await p.generate("a"))
        d.stub.token_gate = asyncio.Event()
        running = asyncio.create_task(d.generate(kv_transfer_params=params, stream=True))
        await eventually(lambda: d.stub.running == 1, "it runs")
        stopping = asyncio.create_task(d.stack.aclose())
        await eventually(lambda: d.context.draining, "it drains")
        d.stub.token_gate.set()
        answer = await running
        assert (answer.status, answer.text) == (200, "t0 t1 t2 t3 ")
        await stopping
