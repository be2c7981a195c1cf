"""Slots, leases, cancellation, drain and links over real engine processes."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import aiohttp
import pytest
from tests.support.engines import Client, EngineProcess, Group, fresh_host, until

from pdserve.refengine.kv.kv_transport import Identity
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.tcp import TcpTransport
from pdserve.refengine.trust import Trust
from pdserve.wire import http
from pdserve.wire.peers import PeerTable

PATH = "/v1/completions"
UNGRANTED = {"credentials": 1, "grant": "", "maxPromptBytes": 2048 * 32 + 4096}
"""In the report of an engine that was pushed a table alone."""
BODY: dict[str, Any] = {
    "model": "reference",
    "prompt": list(range(5, 90)),
    "max_tokens": 8,
    "temperature": 0,
    "ignore_eos": True,
}


async def slots(client: Client, engine: EngineProcess, state: str) -> float:
    return await client.metric(engine, f'pdserve_engine_slots{{state="{state}"}}')


async def is_idle(client: Client, engine: EngineProcess) -> bool:
    """No slot used, no KV block held.

    To be waited for less than the 30 s after which the end of a lease frees a prefill anyway.
    """
    states = ("executing", "holding") if engine.role == "prefill" else ("running", "prefetching")
    used = [await slots(client, engine, s) for s in states]
    usage = await client.metric(engine, 'vllm:kv_cache_usage_perc{model_name="reference"}')
    return not any(used) and usage == 0


async def test_prefill_takes_no_more_than_its_slots(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "3"))
    replies = await asyncio.gather(*(group.prefill(PATH, BODY) for _ in range(20)))
    accepted = [r for r in replies if r.status == 200]
    rejected = [r for r in replies if r.status == 503]
    assert (len(accepted), len(rejected)) == (3, 17)
    for reply in rejected:
        assert reply.headers[http.HEADER_REJECT] == http.REJECT_FULL
        assert reply.headers[http.HEADER_SLOTS] == "0/3"
        assert int(reply.headers[http.HEADER_FREE_IN_MS]) > 0
        assert reply.body["error"]["code"] == "full"
    assert await slots(client, group.prefills[0], "holding") == 3
    assert (
        await client.metric(group.prefills[0], 'pdserve_engine_rejections_total{reason="full"}')
        == 17
    )
    # A pull frees the slot; the others stay.
    reply = await group.decode(PATH, BODY, accepted[0].body[http.PARAM_KV])
    assert reply.status == 200
    assert await slots(client, group.prefills[0], "holding") == 2
    assert (await group.prefill(PATH, BODY)).headers[http.HEADER_SLOTS] == "0/3"


async def test_release_frees_the_slot(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "1"))
    url = group.prefills[0].url + http.PATH_RELEASE
    first = await group.prefill(PATH, BODY, **{http.HEADER_REQUEST_ID: "abc"})
    assert first.body[http.PARAM_KV]["remote_request_id"] == "abc"
    assert (await client.call("POST", url, {"request_id": "abc"}, token="wrong")).status == 401
    assert (await client.call("POST", url, {"request_id": "other"})).status == 204
    assert await slots(client, group.prefills[0], "holding") == 1
    released = await client.call("POST", url, {"request_id": "abc"})
    assert (released.status, released.headers[http.HEADER_SLOTS]) == (204, "1/1")
    assert await is_idle(client, group.prefills[0])
    gone = await group.decode(PATH, BODY, first.body[http.PARAM_KV])
    assert (gone.status, gone.headers[http.HEADER_REJECT]) == (502, http.REJECT_KV_FAILED)
    assert "no KV held" in gone.body["error"]["message"]
    assert await is_idle(client, group.decodes[0])


async def test_the_end_of_the_lease_frees_the_slot(client: Client, start_group: Any) -> None:
    # The grace of a pull, far longer than the wait below, is not for KV that no decode pulls.
    lease = ("--lease-seconds", "0.3", "--transfer-timeout", "600")
    group: Group = await start_group(("--slots", "1", *lease))
    begin = time.monotonic()
    first = await group.prefill(PATH, BODY)
    assert first.status == 200
    await until(lambda: is_idle(client, group.prefills[0]), "lease ends")
    waited = await client.metric(group.prefills[0], "pdserve_engine_kv_wait_decode_seconds_total")
    assert 0.3 <= waited < time.monotonic() - begin
    gone = await group.decode(PATH, BODY, first.body[http.PARAM_KV])
    assert gone.headers[http.HEADER_REJECT] == http.REJECT_KV_FAILED


async def test_decode_takes_slots_plus_prefetch(client: Client, start_group: Any) -> None:
    # Streams of 80 s: they neither end while the test looks nor free their slots by their end.
    paced = ("--paced", "demo-small", "--pace-factor", "2")
    group: Group = await start_group(("--slots", "8"), (*paced, "--slots", "2", "--prefetch", "1"))
    long = BODY | {"max_tokens": 1500}
    legs = [(await group.prefill(PATH, long)).body[http.PARAM_KV] for _ in range(4)]
    async with (
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, http.PARAM_KV: legs[0]}
        ) as a,
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, http.PARAM_KV: legs[1]}
        ) as b,
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, http.PARAM_KV: legs[2]}
        ) as c,
    ):
        assert [r.status for r in (a, b, c)] == [200, 200, 200]
        assert c.headers[http.HEADER_SLOTS] == "0/3"
        full = await group.decode(PATH, long, legs[3])
        assert (full.status, full.headers[http.HEADER_REJECT]) == (503, http.REJECT_DECODE_FULL)

        async def two_and_one() -> bool:
            states = [await slots(client, group.decodes[0], s) for s in ("running", "prefetching")]
            assert sum(states) <= 3 and states[0] <= 2  # one may move between the two readings
            return states == [2, 1]

        # A request whose KV has come joins at the next step.
        await until(two_and_one, "two run, one is prefetched")
    await until(lambda: is_idle(client, group.decodes[0]), "cancelled streams are freed")
    again = await group.decode(PATH, BODY, legs[3])
    assert again.body["usage"]["completion_tokens"] == 8


async def test_a_client_that_leaves_frees_the_prefill(client: Client, start_group: Any) -> None:
    # Short steps, and seconds of them: it executes until it is seen, and its last step ends soon.
    paced = ("--paced", "demo-small", "--pace-factor", "5", "--chunk-tokens", "64")
    group: Group = await start_group((*paced, "--slots", "1", "--no-prefix-cache"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(1900)]}
    leg = asyncio.create_task(group.prefill(PATH, long))

    async def executing() -> bool:
        return await slots(client, group.prefills[0], "executing") == 1

    await until(executing, "prefill executes")
    leg.cancel()
    await until(lambda: is_idle(client, group.prefills[0]), "slot is free")
    assert (await group.prefill(PATH, BODY)).status == 200


async def test_a_client_that_leaves_during_the_transfer_frees_the_decode(
    client: Client, start_group: Any
) -> None:
    # A transfer of 78 s: it neither ends before it is seen nor frees the decode by its end.
    paced = ("--paced", "demo-small", "--pace-factor", "1000")
    group: Group = await start_group((), (*paced, "--slots", "1", "--prefetch", "0"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(1900)]}
    params = (await group.prefill(PATH, long)).body[http.PARAM_KV]
    leg = asyncio.create_task(group.decode(PATH, long, params))

    async def pulling() -> bool:
        return await slots(client, group.decodes[0], "prefetching") == 1

    await until(pulling, "the transfer runs")
    leg.cancel()
    await until(lambda: is_idle(client, group.decodes[0]), "decode is free")


async def test_the_same_request_id_twice_is_distinguished(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    legs = [await group.prefill(PATH, BODY, **{http.HEADER_REQUEST_ID: "same"}) for _ in range(2)]
    ids = [leg.body[http.PARAM_KV]["remote_request_id"] for leg in legs]
    assert ids[0] == "same" and ids[1].startswith("same-")
    assert [leg.headers[http.HEADER_REQUEST_ID] for leg in legs] == ids
    texts = [(await group.decode(PATH, BODY, leg.body[http.PARAM_KV])).body for leg in legs]
    assert texts[0]["choices"] == texts[1]["choices"]
    await until(lambda: is_idle(client, group.prefills[0]), "both are freed")


async def test_drain(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    prefill, decode = group.prefills[0], group.decodes[0]
    long = BODY | {"max_tokens": 400, "stream": True}
    held = (await group.prefill(PATH, BODY)).body[http.PARAM_KV]
    params = (await group.prefill(PATH, long)).body[http.PARAM_KV]
    async with client.stream(decode.url + PATH, long | {http.PARAM_KV: params}) as stream:
        report = (await client.call("POST", decode.url + http.PATH_DRAIN)).body
        assert report == {"executing": 1, "holding": 0, "streams": 1}
        refused = await group.decode(PATH, BODY, held)
        assert (refused.status, refused.headers[http.HEADER_REJECT]) == (503, "draining")
        assert (await client.call("GET", decode.url + http.PATH_READY)).status == 503
        text = (await stream.read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    again = (await client.call("POST", decode.url + http.PATH_DRAIN)).body
    assert again == {"executing": 0, "holding": 0, "streams": 0}
    report = (await client.call("POST", prefill.url + http.PATH_DRAIN)).body
    assert report == {"executing": 0, "holding": 1, "streams": 0}


async def test_sigterm_lets_streams_finish(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    long = BODY | {"max_tokens": 300, "stream": True}
    params = (await group.prefill(PATH, long)).body[http.PARAM_KV]
    process = group.decodes[0].process
    assert process is not None
    async with client.stream(group.decodes[0].url + PATH, long | {http.PARAM_KV: params}) as stream:
        process.send_signal(signal.SIGTERM)
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(process.wait, 10) == 0


@pytest.mark.parametrize(("seconds", "finishes"), [("600", True), ("0.2", False)])
async def test_streams_finish_within_drain_seconds(
    seconds: str, finishes: bool, client: Client, start_group: Any
) -> None:
    paced = ("--paced", "demo-small", "--pace-factor", "5", "--drain-seconds", seconds)
    group: Group = await start_group((), paced)
    long = BODY | {"max_tokens": 20, "stream": True}
    params = (await group.prefill(PATH, long)).body[http.PARAM_KV]
    process = group.decodes[0].process
    assert process is not None
    text = b""
    async with client.stream(group.decodes[0].url + PATH, long | {http.PARAM_KV: params}) as stream:
        process.send_signal(signal.SIGTERM)
        try:
            while piece := await stream.content.readany():
                text += piece
        except aiohttp.ClientError:
            assert not finishes
    assert text.endswith(b"data: [DONE]\n\n") == finishes
    assert await asyncio.to_thread(process.wait, 60) == 0


async def test_an_idle_prefill_takes_prompts_that_it_can_do_in_time(
    client: Client, start_group: Any
) -> None:
    """From the first request on, and after tiny prompts that say nothing of longer ones."""
    group: Group = await start_group(("--slots", "2", "--no-prefix-cache"))
    release = group.prefills[0].url + http.PATH_RELEASE

    async def prefill(tokens: int, name: str) -> None:
        # A tenth of it is enough on an idle core.
        left = {http.HEADER_DEADLINE_MS: str(1000 + 20 * tokens), http.HEADER_REQUEST_ID: name}
        reply = await group.prefill(PATH, BODY | {"prompt": [5 + i for i in range(tokens)]}, **left)
        assert reply.status == 200, reply.body
        assert (await client.call("POST", release, {"request_id": name})).status == 204

    for number, tokens in enumerate([100, 700, *[1] * 30, 100, 700, 1500, 90]):
        await prefill(tokens, f"r{number}")


async def test_deadline(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--no-prefix-cache", "--slots", "100"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(1500)]}
    for left in ("2", "0", "-5"):
        late = await group.prefill(PATH, long, **{http.HEADER_DEADLINE_MS: left})
        while late.status == 200:  # idle, it tries one out in 5 s
            late = await group.prefill(PATH, long, **{http.HEADER_DEADLINE_MS: left})
        assert (late.status, late.headers[http.HEADER_REJECT]) == (503, http.REJECT_DEADLINE)
        needed, rest = (int(late.headers[h]) for h in (http.HEADER_NEEDED_MS, http.HEADER_LEFT_MS))
        assert needed > rest >= 0 and rest <= max(0, int(left))
        assert f"needs {needed} ms, {rest} ms are left" in late.body["error"]["message"]
    assert (await group.prefill(PATH, long, **{http.HEADER_DEADLINE_MS: "60000"})).status == 200
    bad = await group.prefill(PATH, long, **{http.HEADER_DEADLINE_MS: "soon"})
    assert bad.status == 400


async def test_tables_and_readiness(client: Client, start: Any) -> None:
    prefill = await start(EngineProcess("prefill"))
    decode = await start(EngineProcess("decode"))
    group = Group(client, [prefill], [decode])
    url = prefill.url + http.PATH_PEERS
    early = await group.prefill(PATH, BODY)
    assert (early.status, early.headers[http.HEADER_REJECT]) == (503, http.REJECT_NOT_READY)
    assert (await client.call("GET", prefill.url + http.PATH_READY)).status == 503
    empty = {"version": 0, "up": [], "down": {}, **UNGRANTED}
    assert (await client.call("GET", prefill.url + http.PATH_LINKS)).body == empty
    # Only this side knows the table: the peer refuses, and the report says why.
    assert (await client.call("PUT", url, group.table(5).to_json())).status == 200

    async def refused() -> bool:
        report = (await client.call("GET", prefill.url + http.PATH_LINKS)).body
        return "is not a peer of" in report["down"].get(decode.name, "")

    await until(refused, "the peer refuses")
    assert (await client.call("GET", prefill.url + http.PATH_READY)).status == 503
    group.version = 4
    await group.push()
    assert (await client.call("GET", prefill.url + http.PATH_READY)).status == 200
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
    report = (await client.call("GET", prefill.url + http.PATH_LINKS)).body
    assert report["version"] == 7 and report["up"] == [decode.name] and "ghost" in report["down"]
    assert (await client.call("GET", prefill.url + http.PATH_READY)).status == 200
    # A table without the ghost forgets it.
    assert (await client.call("PUT", url, group.table(8).to_json())).status == 200
    report = (await client.call("GET", prefill.url + http.PATH_LINKS)).body
    assert report == {"version": 8, "up": [decode.name], "down": {}, **UNGRANTED}


async def test_a_restarted_peer_is_linked_again(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    prefill, decode = group.prefills[0], group.decodes[0]
    decode.kill()

    async def lost() -> bool:
        return decode.name in (await client.call("GET", prefill.url + http.PATH_LINKS)).body["down"]

    await until(lost, "the loss is reported", 5)
    decode.start()
    await until(lambda: client.up(decode), "restarted", 60)
    table = group.table(group.version).to_json()
    assert (await client.call("PUT", decode.url + http.PATH_PEERS, table)).status == 200
    for engine in (prefill, decode):
        await until(lambda e=engine: group.linked(e), f"{engine.name} is linked again")  # type: ignore[misc]
    assert (await group.generate(PATH, BODY)).status == 200


async def test_another_secret_never_links(client: Client, start: Any) -> None:
    prefill = await start(EngineProcess("prefill"))
    decode = await start(EngineProcess("decode", token="other"))
    table = Group(client, [prefill], [decode]).table(1).to_json()
    assert (await client.call("PUT", prefill.url + http.PATH_PEERS, table)).status == 200
    put = await client.call("PUT", decode.url + http.PATH_PEERS, table, token="other")
    assert put.status == 200

    async def refused() -> bool:
        report = (await client.call("GET", prefill.url + http.PATH_LINKS)).body
        return "wrong token" in report["down"].get(decode.name, "")

    await until(refused, "refused for the token")


class _Corrupting:
    """A prefill's exporter whose payload does not match its checksum."""

    def __init__(self, size: int) -> None:
        self.payload = Payload(85, memoryview(bytes(size)), 12345)

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
    info = (await client.call("GET", decode.url + http.PATH_INFO)).body
    rogue = EngineProcess("prefill", name="rogue", host=fresh_host())
    size = 3 * 32 * info["kvBytesPerToken"]
    identity = Identity("rogue", Trust(rogue.token), info["fingerprint"], info["numerics"])
    transport = TcpTransport(identity, _Corrupting(size), 5)
    await transport.start(rogue.host, 5600)
    table = Group(client, [rogue], [decode]).table(1)
    await client.call("PUT", decode.url + http.PATH_PEERS, table.to_json())

    async def linked() -> bool:
        report = (await client.call("GET", decode.url + http.PATH_LINKS)).body
        return report["up"] == ["rogue"]

    await until(linked, "linked to the rogue")
    params = {
        "do_remote_prefill": True,
        "remote_engine_id": "rogue",
        "remote_request_id": "r",
        "remote_num_tokens": 85,
        "pdserve": {"first_token_ids": [9], "seed": 1, "position": 85, "cached_tokens": 0},
    }
    reply = await client.call("POST", decode.url + PATH, BODY | {http.PARAM_KV: params})
    assert (reply.status, reply.headers[http.HEADER_REJECT]) == (502, http.REJECT_KV_FAILED)
    assert "corrupt" in reply.body["error"]["message"]
    assert await is_idle(client, decode)
    foreign = params | {"remote_engine_id": "unknown"}
    reply = await client.call("POST", decode.url + PATH, BODY | {http.PARAM_KV: foreign})
    assert (reply.status, reply.headers[http.HEADER_REJECT]) == (502, http.REJECT_KV_FAILED)
    await transport.stop()


async def test_rejection_is_fast_while_computing(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "1", "--no-prefix-cache"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(2000)]}
    leg = asyncio.create_task(group.prefill(PATH, long))

    async def executing() -> bool:
        return await slots(client, group.prefills[0], "executing") == 1

    await until(executing, "prefill executes")
    times = []
    while not leg.done():
        begin = time.perf_counter()
        reply = await group.prefill(PATH, BODY)
        if reply.status == 503:
            times.append(time.perf_counter() - begin)
    assert len(times) > 20
    # The median of the whole exchange; this client's own part is most of it.
    assert sorted(times)[len(times) // 2] < 0.005


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_linked_roles_need_a_token(role: str) -> None:
    engine = EngineProcess(role, token="")
    engine.start()
    assert engine.process is not None
    assert await asyncio.to_thread(engine.process.wait, 60) == 2
