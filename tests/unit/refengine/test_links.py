"""Links between real engine processes: tables, readiness, secrets, and KV that arrives corrupt."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.support.engine_requests import BODY, PATH, is_idle
from tests.support.engines import Client, EngineProcess, Group, fresh_host, until

from pdserve.engines.trust import Trust
from pdserve.refengine.kv.kv_transport import Identity
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.wire import calls, metrics
from pdserve.wire.peers import PeerTable

UNGRANTED = {"credentials": 1, "grant": "", "maxPromptBytes": 2048 * 32 + 4096, "maxModelLen": 2048}
"""In the report of an engine that was pushed a table alone."""


async def test_tables_and_readiness(client: Client, start: Any) -> None:
    prefill = await start(EngineProcess("prefill"))
    decode = await start(EngineProcess("decode"))
    group = Group(client, [prefill], [decode])
    url = prefill.url + calls.PATH_PEERS
    early = await group.prefill(PATH, BODY)
    assert (early.status, early.headers[calls.HEADER_REJECT]) == (503, calls.REJECT_NOT_READY)
    assert (await client.call("GET", prefill.url + calls.PATH_READY)).status == 503
    empty = {"version": 0, "up": [], "down": {}, **UNGRANTED}
    assert (await client.call("GET", prefill.url + calls.PATH_LINKS)).body == empty
    # Only this side knows the table: the peer refuses, and the report says why.
    assert (await client.call("PUT", url, group.table(5).to_json())).status == 200

    async def refused() -> bool:
        report = (await client.call("GET", prefill.url + calls.PATH_LINKS)).body
        return "is not a peer of" in report["down"].get(decode.name, "")

    await until(refused, "the peer refuses")
    assert (await client.call("GET", prefill.url + calls.PATH_READY)).status == 503
    group.version = 4
    await group.push()
    assert (await client.call("GET", prefill.url + calls.PATH_READY)).status == 200
    # Versions only rise; the same table again is fine, another one of the same version is not.
    assert (await client.call("PUT", url, group.table(5).to_json())).status == 200
    for table in (group.table(4), PeerTable("other", 5, group.table(5).instances)):
        stale = await client.call("PUT", url, table.to_json())
        assert (stale.status, stale.body["version"]) == (409, 5)
    foreign = PeerTable("g-0", 6, (decode.peer(),))
    assert (await client.call("PUT", url, foreign.to_json())).status == 422
    swapped = PeerTable("g-0", 6, (prefill.peer("decode"),))
    assert (await client.call("PUT", url, swapped.to_json())).status == 422
    # A newer table with a peer that is not there yet: reported down, but still ready.
    ghost = EngineProcess("decode", name="ghost")
    wider = PeerTable("g-0", 7, (*group.table(7).instances, ghost.peer()))
    assert (await client.call("PUT", url, wider.to_json())).status == 200
    report = (await client.call("GET", prefill.url + calls.PATH_LINKS)).body
    assert report["version"] == 7 and report["up"] == [decode.name] and "ghost" in report["down"]
    assert (await client.call("GET", prefill.url + calls.PATH_READY)).status == 200
    # A table without the ghost forgets it.
    assert (await client.call("PUT", url, group.table(8).to_json())).status == 200
    report = (await client.call("GET", prefill.url + calls.PATH_LINKS)).body
    assert report == {"version": 8, "up": [decode.name], "down": {}, **UNGRANTED}


async def test_a_restarted_peer_is_linked_again(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    prefill, decode = group.prefills[0], group.decodes[0]
    decode.kill()

    async def lost() -> bool:
        return (
            decode.name in (await client.call("GET", prefill.url + calls.PATH_LINKS)).body["down"]
        )

    await until(lost, "the loss is reported", 5)
    decode.start()
    await until(lambda: client.up(decode), "restarted", 60)
    table = group.table(group.version).to_json()
    assert (await client.call("PUT", decode.url + calls.PATH_PEERS, table)).status == 200
    for engine in (prefill, decode):
        await until(lambda e=engine: group.linked(e), f"{engine.name} is linked again")  # type: ignore[misc]
    assert (await group.generate(PATH, BODY)).status == 200


async def test_another_secret_never_links(client: Client, start: Any) -> None:
    prefill = await start(EngineProcess("prefill"))
    decode = await start(EngineProcess("decode", token="other"))
    table = Group(client, [prefill], [decode]).table(1).to_json()
    assert (await client.call("PUT", prefill.url + calls.PATH_PEERS, table)).status == 200
    put = await client.call("PUT", decode.url + calls.PATH_PEERS, table, token="other")
    assert put.status == 200

    async def refused() -> bool:
        report = (await client.call("GET", prefill.url + calls.PATH_LINKS)).body
        return "wrong token" in report["down"].get(decode.name, "")

    await until(refused, "refused for the token")


class _Corrupting:
    """A prefill's exporter whose payload does not match its checksum."""

    def __init__(self, size: int) -> None:
        self.payload = replace(Payload.of(85, memoryview(bytes(size))), checksums=(12345,))

    def admits(self, peer: str) -> str | None:
        return None

    def export(self, request_id: str, peer: str) -> Payload | None:
        return self.payload

    def pulled(self, request_id: str, peer: str) -> None:
        raise AssertionError("corrupt KV was confirmed")

    def pull_failed(self, request_id: str, peer: str) -> None:
        return


async def test_corrupt_kv_is_never_used(client: Client, start: Any) -> None:
    decode = await start(EngineProcess("decode"))
    info = (await client.call("GET", decode.url + calls.PATH_INFO)).body
    rogue = EngineProcess("prefill", name="rogue", host=fresh_host())
    size = 3 * 32 * info["kvBytesPerToken"]
    identity = Identity("rogue", Trust(rogue.token), info["fingerprint"], info["numerics"])
    transport = TcpTransport(identity, _Corrupting(size), 5)
    await transport.start(rogue.host, 5600)
    table = Group(client, [rogue], [decode]).table(1)
    await client.call("PUT", decode.url + calls.PATH_PEERS, table.to_json())

    async def linked() -> bool:
        report = (await client.call("GET", decode.url + calls.PATH_LINKS)).body
        return report["up"] == ["rogue"]

    await until(linked, "linked to the rogue")
    params = {
        "do_remote_prefill": True,
        "remote_engine_id": "rogue",
        "remote_request_id": "r",
        "remote_num_tokens": 85,
        "pdserve": {"first_token_ids": [9], "seed": 1, "position": 85, "cached_tokens": 0},
    }
    reply = await client.call("POST", decode.url + PATH, BODY | {calls.PARAM_KV: params})
    assert (reply.status, reply.headers[calls.HEADER_REJECT]) == (502, calls.REJECT_KV_CORRUPT)
    assert "corrupt in blocks 0 to 2" in reply.body["error"]["message"]
    corrupt = f'{metrics.KV_CORRUPT_PULLS}{{peer="rogue"}}'
    assert await client.metric(decode, corrupt) == 2  # pulled once more
    report = (await client.call("GET", decode.url + calls.PATH_LINKS)).body
    assert (report["pulls"], report["corrupt"]) == ({"rogue": 2}, {"rogue": 2})
    assert await is_idle(client, decode)
    foreign = params | {"remote_engine_id": "unknown"}
    reply = await client.call("POST", decode.url + PATH, BODY | {calls.PARAM_KV: foreign})
    assert (reply.status, reply.headers[calls.HEADER_REJECT]) == (502, calls.REJECT_KV_FAILED)
    await transport.stop()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_linked_roles_need_a_token(role: str) -> None:
    engine = EngineProcess(role, token="")
    engine.start()
    assert engine.process is not None
    assert await asyncio.to_thread(engine.process.wait, 60) == 2
