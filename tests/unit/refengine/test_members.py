"""Instances of several processes that share a model's layers: same bits, one Ready, one fate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.engines import Client, EngineProcess, Group, until
from tests.unit.refengine.test_exact_processes import PATH, TEXT, bodies, essence, wanted

from pdserve.wire import calls

PROMPT = {
    "model": "reference",
    "prompt": TEXT[:900],
    "max_tokens": 20,
    "temperature": 0,
    "logprobs": 1,
}


async def group_of(client: Client, start: Any, prefill: int, decode: int, *args: str) -> Group:
    """1P1D of so many members each."""
    p = await start(EngineProcess("prefill", ("--slots", "6", *args)).with_members(prefill))
    d = await start(EngineProcess("decode", ("--slots", "6", *args)).with_members(decode))
    made = Group(client, [p], [d])
    await made.push()
    return made


@pytest.mark.parametrize(
    ("prefill", "decode", "args"),
    [(2, 3, ("--chunk-tokens", "37", "--max-batch-tokens", "90")), (1, 2, ()), (4, 1, ())],
)
async def test_the_tokens_are_those_of_one_process(
    prefill: int, decode: int, args: tuple[str, ...], client: Client, start: Any
) -> None:
    plain = await start(EngineProcess("both", ("--no-prefix-cache", "--chunk-tokens", "4096")))
    want = await wanted(client, plain)
    group = await group_of(client, start, prefill, decode, *args)
    for _ in range(2):  # The second round finds its prefixes in the cache.
        got = await asyncio.gather(*(group.generate(PATH, body) for body in bodies()))
        assert [essence(reply) for reply in got] == want
    assert any(r.body["usage"]["prompt_tokens_details"]["cached_tokens"] for r in got)
    for engine in (*group.prefills, *group.decodes):
        for member in engine.members:
            info = (await client.call("GET", member.url + calls.PATH_INFO)).body
            assert info["ready"] and info["steps"] > 0, info


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_instance_without_a_member_takes_nothing_and_forgets_its_kv(
    role: str, client: Client, start: Any
) -> None:
    group = await group_of(client, start, 2, 2)
    want = essence(await group.generate(PATH, PROMPT))
    leader = (group.prefills if role == "prefill" else group.decodes)[0]
    (member,) = leader.members
    long = {**PROMPT, "max_tokens": 900, "ignore_eos": True}
    running = asyncio.create_task(group.generate(PATH, long))
    if role == "decode":
        occupied = 'pdserve_engine_slots{state="running"}'
        await until(lambda: _positive(client, leader, occupied), "a decode runs")
    member.kill()
    await until(lambda: _unready(group, leader), "the leader says that it is not ready")
    answer = await client.call("GET", leader.url + calls.PATH_READY)
    assert f"{leader.name}-m1" in answer.body["why"]
    url = leader.url + PATH
    refused = await client.call("POST", url, {**PROMPT, calls.PARAM_KV: {"do_remote_decode": True}})
    assert (refused.status, refused.headers[calls.HEADER_REJECT]) == (503, "not_ready")
    running.cancel()
    member.start()
    await until(lambda: client.up(member), "the member starts anew")
    assert not await group.ready(leader), "it has no key before the operator's push"
    await group.tell()
    await until(lambda: group.ready(leader), "it is whole again")
    again = await group.generate(PATH, PROMPT)
    assert essence(again) == want
    if role == "prefill":
        assert again.body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_leader_that_starts_anew_finds_its_members(client: Client, start: Any) -> None:
    group = await group_of(client, start, 1, 2)
    want = essence(await group.generate(PATH, PROMPT))
    (leader,) = group.decodes
    others, leader.members = leader.members, ()
    leader.kill()
    await until(lambda: _unready(group, others[0]), "the member knows that its leader is gone")
    leader.start()
    leader.members = others
    await until(lambda: client.up(leader), "the leader starts anew")
    await group.push()
    assert essence(await group.generate(PATH, PROMPT)) == want


async def _unready(group: Group, engine: EngineProcess) -> bool:
    return not await group.ready(engine)


async def _positive(client: Client, engine: EngineProcess, series: str) -> bool:
    return await client.metric(engine, series) > 0
