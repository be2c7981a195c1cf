"""Slots and leases of real engine processes: what takes one, and what frees it."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

from tests.support.engine_requests import BODY, PATH, is_idle, slots
from tests.support.engines import Client, Group, until

from pdserve.wire import calls


async def test_prefill_takes_no_more_than_its_slots(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "3"))
    replies = await asyncio.gather(*(group.prefill(PATH, BODY) for _ in range(20)))
    accepted = [r for r in replies if r.status == 200]
    rejected = [r for r in replies if r.status == 503]
    assert (len(accepted), len(rejected)) == (3, 17)
    for reply in rejected:
        assert reply.headers[calls.HEADER_REJECT] == calls.REJECT_FULL
        assert reply.headers[calls.HEADER_SLOTS] == "0/3"
        assert int(reply.headers[calls.HEADER_FREE_IN_MS]) > 0
        assert reply.body["error"]["code"] == "full"
    assert await slots(client, group.prefills[0], "holding") == 3
    assert (
        await client.metric(group.prefills[0], 'pdserve_engine_rejections_total{reason="full"}')
        == 17
    )
    # A pull frees the slot; the others stay.
    reply = await group.decode(PATH, BODY, accepted[0].body[calls.PARAM_KV])
    assert reply.status == 200
    assert await slots(client, group.prefills[0], "holding") == 2
    assert (await group.prefill(PATH, BODY)).headers[calls.HEADER_SLOTS] == "0/3"


async def test_release_frees_the_slot(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "1"))
    url = group.prefills[0].url + calls.PATH_RELEASE
    first = await group.prefill(PATH, BODY, **{calls.HEADER_REQUEST_ID: "abc"})
    assert first.body[calls.PARAM_KV]["remote_request_id"] == "abc"
    assert (await client.call("POST", url, {"request_id": "abc"}, token="wrong")).status == 401
    assert (await client.call("POST", url, {"request_id": "other"})).status == 204
    assert await slots(client, group.prefills[0], "holding") == 1
    released = await client.call("POST", url, {"request_id": "abc"})
    assert (released.status, released.headers[calls.HEADER_SLOTS]) == (204, "1/1")
    assert await is_idle(client, group.prefills[0])
    gone = await group.decode(PATH, BODY, first.body[calls.PARAM_KV])
    assert (gone.status, gone.headers[calls.HEADER_REJECT]) == (502, calls.REJECT_KV_FAILED)
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
    gone = await group.decode(PATH, BODY, first.body[calls.PARAM_KV])
    assert gone.headers[calls.HEADER_REJECT] == calls.REJECT_KV_FAILED


async def test_decode_takes_slots_plus_prefetch(client: Client, start_group: Any) -> None:
    # Streams of 80 s: they neither end while the test looks nor free their slots by their end.
    paced = ("--paced", "demo-small", "--pace-factor", "2")
    group: Group = await start_group(("--slots", "8"), (*paced, "--slots", "2", "--prefetch", "1"))
    long = BODY | {"max_tokens": 1500}
    legs = [(await group.prefill(PATH, long)).body[calls.PARAM_KV] for _ in range(4)]
    async with (
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, calls.PARAM_KV: legs[0]}
        ) as a,
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, calls.PARAM_KV: legs[1]}
        ) as b,
        client.stream(
            group.decodes[0].url + PATH, long | {"stream": True, calls.PARAM_KV: legs[2]}
        ) as c,
    ):
        assert [r.status for r in (a, b, c)] == [200, 200, 200]
        assert c.headers[calls.HEADER_SLOTS] == "0/3"
        full = await group.decode(PATH, long, legs[3])
        assert (full.status, full.headers[calls.HEADER_REJECT]) == (503, calls.REJECT_DECODE_FULL)

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
    params = (await group.prefill(PATH, long)).body[calls.PARAM_KV]
    leg = asyncio.create_task(group.decode(PATH, long, params))

    async def pulling() -> bool:
        return await slots(client, group.decodes[0], "prefetching") == 1

    await until(pulling, "the transfer runs")
    leg.cancel()
    await until(lambda: is_idle(client, group.decodes[0]), "decode is free")


async def test_the_same_request_id_twice_is_distinguished(client: Client, start_group: Any) -> None:
    group: Group = await start_group()
    legs = [await group.prefill(PATH, BODY, **{calls.HEADER_REQUEST_ID: "same"}) for _ in range(2)]
    ids = [leg.body[calls.PARAM_KV]["remote_request_id"] for leg in legs]
    assert ids[0] == "same" and ids[1].startswith("same-")
    assert [leg.headers[calls.HEADER_REQUEST_ID] for leg in legs] == ids
    texts = [(await group.decode(PATH, BODY, leg.body[calls.PARAM_KV])).body for leg in legs]
    assert texts[0]["choices"] == texts[1]["choices"]
    await until(lambda: is_idle(client, group.prefills[0]), "both are freed")


async def test_an_idle_prefill_takes_prompts_that_it_can_do_in_time(
    client: Client, start_group: Any
) -> None:
    """From the first request on, and after tiny prompts that say nothing of longer ones."""
    group: Group = await start_group(("--slots", "2", "--no-prefix-cache"))
    release = group.prefills[0].url + calls.PATH_RELEASE

    async def prefill(tokens: int, name: str) -> None:
        # A tenth of it is enough on an idle core.
        left = {calls.HEADER_DEADLINE_MS: str(1000 + 20 * tokens), calls.HEADER_REQUEST_ID: name}
        reply = await group.prefill(PATH, BODY | {"prompt": [5 + i for i in range(tokens)]}, **left)
        assert reply.status == 200, reply.body
        assert (await client.call("POST", release, {"request_id": name})).status == 204

    for number, tokens in enumerate([100, 700, *[1] * 30, 100, 700, 1500, 90]):
        await prefill(tokens, f"r{number}")


async def test_deadline(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--no-prefix-cache", "--slots", "100"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(1500)]}
    for left in ("2", "0", "-5"):
        late = await group.prefill(PATH, long, **{calls.HEADER_DEADLINE_MS: left})
        while late.status == 200:  # idle, it tries one out in 5 s
            late = await group.prefill(PATH, long, **{calls.HEADER_DEADLINE_MS: left})
        assert (late.status, late.headers[calls.HEADER_REJECT]) == (503, calls.REJECT_DEADLINE)
        needed, rest = (
            int(late.headers[h]) for h in (calls.HEADER_NEEDED_MS, calls.HEADER_LEFT_MS)
        )
        assert needed > rest >= 0 and rest <= max(0, int(left))
        assert f"needs {needed} ms, {rest} ms are left" in late.body["error"]["message"]
    assert (await group.prefill(PATH, long, **{calls.HEADER_DEADLINE_MS: "60000"})).status == 200
    bad = await group.prefill(PATH, long, **{calls.HEADER_DEADLINE_MS: "soon"})
    assert bad.status == 400


async def test_rejection_is_fast_while_computing(client: Client, start_group: Any) -> None:
    group: Group = await start_group(("--slots", "1", "--no-prefix-cache"))
    long = BODY | {"prompt": [5 + i % 2000 for i in range(2000)]}
    leg = asyncio.create_task(group.prefill(PATH, long))

    async def executing() -> bool:
        return await slots(client, group.prefills[0], "executing") == 1

    await until(executing, "prefill executes")
    rejected, healthy = [], []
    while not leg.done():
        begin = time.perf_counter()
        reply = await group.prefill(PATH, BODY)
        between = time.perf_counter()
        await client.call("GET", group.prefills[0].url + calls.PATH_HEALTH)
        if reply.status == 503:
            rejected.append(between - begin)
            healthy.append(time.perf_counter() - between)
    assert len(rejected) > 20
    # Whole exchanges on the same machine at the same moments: a rejection waits for no step.
    assert median(rejected) < 3 * median(healthy)
