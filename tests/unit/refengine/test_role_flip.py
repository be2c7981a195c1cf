"""An engine process takes the other role when a peer table names it in that one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.engine_requests import BODY, PATH
from tests.support.engines import Client, EngineProcess, Group, until

from pdserve.refengine.config import parse
from pdserve.wire import calls
from pdserve.wire.peers import PeerTable


async def test_a_flipped_engine_serves_in_its_new_role(client: Client, start_group: Any) -> None:
    group: Group = await start_group(decodes=2)
    flipped, decode = group.decodes
    process = flipped.process
    assert process is not None
    want = (await group.decode(PATH, BODY, await _held(group))).body["choices"]
    await client.call("POST", flipped.url + calls.PATH_DRAIN)
    group.version += 1
    table = _table(group, flipped)
    for engine in (*group.prefills, decode):
        reply = await client.call("PUT", engine.url + calls.PATH_PEERS, table.to_json())
        assert reply.status == 200
    reply = await client.call("PUT", flipped.url + calls.PATH_PEERS, table.to_json())
    assert (reply.status, reply.body["error"]["code"]) == (503, "role_flip")
    await until(lambda: _is(client, flipped, "prefill"), "the new role")
    assert not (await _info(client, flipped))["ready"], "its links are not made yet"
    await client.call("PUT", flipped.url + calls.PATH_PEERS, table.to_json())
    await until(lambda: group.linked(flipped), "links in the new role")
    assert (await _info(client, flipped))["prefetch"] == 0
    assert process.poll() is None, "the same process"
    # It computes prompts, and what it hands over is what the other prefill would.
    group.prefills, group.decodes = [flipped], [decode]
    assert (await group.decode(PATH, BODY, await _held(group))).body["choices"] == want


async def test_an_older_table_takes_no_role_back(client: Client, start_group: Any) -> None:
    group: Group = await start_group(decodes=2)
    flipped = group.decodes[0]
    old = group.table(group.version)
    await client.call("POST", flipped.url + calls.PATH_DRAIN)
    group.version += 1
    await client.call("PUT", flipped.url + calls.PATH_PEERS, _table(group, flipped).to_json())
    await until(lambda: _is(client, flipped, "prefill"), "the new role")
    late = await client.call("PUT", flipped.url + calls.PATH_PEERS, old.to_json())
    assert late.status == 409
    assert (await _info(client, flipped))["role"] == "prefill"


async def test_an_older_table_flips_no_instance(client: Client, start_group: Any) -> None:
    group: Group = await start_group(decodes=2)
    serves = group.decodes[0]
    await group.push()
    older = replace(_table(group, serves), version=1)
    late = await client.call("PUT", serves.url + calls.PATH_PEERS, older.to_json())
    assert late.status == 409
    info = await _info(client, serves)
    assert (info["role"], info["ready"]) == ("decode", True)


async def test_a_newer_table_flips_no_instance_that_serves(
    client: Client, start_group: Any
) -> None:
    group: Group = await start_group(decodes=2)
    serves = group.decodes[0]
    newer = replace(_table(group, serves), version=9)
    reply = await client.call("PUT", serves.url + calls.PATH_PEERS, newer.to_json())
    assert (reply.status, reply.body["error"]["code"]) == (422, "wrong_role")
    info = await _info(client, serves)
    assert (info["role"], info["ready"]) == ("decode", True)


def test_slots_are_those_of_the_role_that_it_has() -> None:
    env = {"PDSERVE_ROLE": "prefill", "PDSERVE_TOKEN": "t", "PDSERVE_DECODE_SLOTS": "32"}
    prefill = parse(["--slots", "4"], env)
    assert (prefill.slots, prefill.in_role("decode", 1, 2).slots) == (4, 32)
    # A container that restarts in the role it took later has the flag of its first role.
    assert parse(["--slots", "4"], env | {"PDSERVE_ROLE": "decode"}).slots == 32


@pytest.mark.parametrize("text", ["-1", "4097", "x", "1e3", "٣", "9" * 5000, "4 4"])
def test_odd_slots_of_a_role_end_the_process_with_a_reason(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"PDSERVE_ROLE": "prefill", "PDSERVE_TOKEN": "t", "PDSERVE_PREFILL_SLOTS": text}
    with pytest.raises(SystemExit):
        parse([], env)
    assert "PDSERVE_PREFILL_SLOTS" in capsys.readouterr().err


async def _held(group: Group) -> Any:
    return (await group.prefill(PATH, BODY)).body[calls.PARAM_KV]


def _table(group: Group, flipped: EngineProcess) -> PeerTable:
    table = group.table(group.version)
    return replace(
        table,
        instances=tuple(
            replace(p, role="prefill") if p.id == flipped.name else p for p in table.instances
        ),
    )


async def _info(client: Client, engine: EngineProcess) -> Any:
    return (await client.call("GET", engine.url + calls.PATH_INFO)).body


async def _is(client: Client, engine: EngineProcess, role: str) -> bool:
    try:
        return bool((await _info(client, engine))["role"] == role)
    except OSError:
        return False  # it listens again in a moment
