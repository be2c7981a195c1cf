"""Legs through the proxy: admission before the engine, slots, KV until pulled, aborts, drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
import pytest_asyncio
from tests.support.gateway_rig import eventually
from tests.support.proxy_rig import AUTH, KEEP, Instance, ProxyRig, kv, rig
from tests.support.vllm_stub import MODEL

from pdserve.engineproxy.prefill_leg import PrefillLegs
from pdserve.http1.receive import HttpRequest


@pytest_asyncio.fixture
async def group() -> AsyncIterator[ProxyRig]:
    async with rig(decodes=2) as made:
        yield made


def three(made: ProxyRig) -> tuple[Instance, Instance, Instance]:
    i = made.instances
    return i["p0"], i["d0"], i["d1"]


def hint(answer: object) -> str:
    return str(answer.headers["x-pdserve-slots"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_pair_answers_and_the_prefills_slot_is_held_until_the_pull(
    group: ProxyRig, stream: bool
) -> None:
    p, d, _ = three(group)
    first = await p.generate("a")
    assert (hint(first), p.held, p.executing) == ("1/2", 1, 0)
    assert p.stub.headers[-1]["x-request-id"] == "a"
    options: dict[str, Any] = {}
    if stream:
        options = {"stream": True, "stream_options": {"include_usage": True}}
    second = await d.generate(kv_transfer_params=kv(first), max_tokens=3, **options)
    assert (second.status, second.text) == (200, "t0 t1 t2 ")
    await eventually(lambda: not p.held, "the slot is free")
    assert p.stub.held == set()
    assert d.executing == 0


async def test_a_refusal_comes_before_the_engine_sees_the_request(group: ProxyRig) -> None:
    """Or a decode that is full would cost the KV."""
    p, d, _ = three(group)
    params = kv(await p.generate("a"))
    d.stub.token_gate = asyncio.Event()
    running = [
        asyncio.create_task(d.generate(kv_transfer_params=kv(await p.generate(n)), max_tokens=1))
        for n in "b"
    ]
    other = await group.add("prefill", "p1")
    await group.link()
    running.append(
        asyncio.create_task(
            d.generate(kv_transfer_params=kv(await other.generate("c")), max_tokens=1)
        )
    )
    await eventually(lambda: d.stub.running == 2, "both run")
    seen = len(d.stub.seen)
    refused = await d.generate(kv_transfer_params=params)
    assert (refused.status, refused.headers["x-pdserve-reject"]) == (503, "decode_full")
    assert (hint(refused), int(refused.headers["x-pdserve-free-in-ms"]) > 0) == ("0/2", True)
    assert len(d.stub.seen) == seen
    assert len(p.stub.held) == 1, "its KV is still there"
    d.stub.token_gate.set()
    assert {a.status for a in await asyncio.gather(*running)} == {200}
    assert (await d.generate(kv_transfer_params=params)).status == 200


async def test_held_kv_counts_as_a_slot(group: ProxyRig) -> None:
    p, _, _ = three(group)
    assert [(await p.generate(n)).status for n in "abc"] == [200, 200, 503]
    full = await p.generate("d")
    assert full.headers["x-pdserve-reject"] == "full"
    assert p.stub.events["requests"] == 2


@pytest.mark.parametrize("by", ["request", "kv"])
async def test_a_release_frees_the_kv_in_the_engine(group: ProxyRig, by: str) -> None:
    p, d, _ = three(group)
    params = kv(await p.generate("a"))
    name = "a" if by == "request" else params["remote_request_id"]
    answer = await p.ask("POST", "/pdserve/v1/release", {"request_id": name})
    assert answer.status == 204
    await eventually(lambda: not p.stub.held and not p.held, "the engine has freed it")
    assert d.stub.events["refused 404"] == 1


async def test_a_release_works_while_the_decodes_engine_is_full(group: ProxyRig) -> None:
    """Its refusal frees the KV as well as any other."""
    p, d, _ = three(group)
    d.stub.max_queued = 0
    await p.generate("a")
    await p.ask("POST", "/pdserve/v1/release", {"request_id": "a"})
    await eventually(lambda: not p.stub.held and not p.held, "the engine has freed it")
    assert d.stub.events["refused 503"] == 1


class GoneReply:
    """The reply to a client that has left in the moment in which it is written."""

    on_unread: Callable[[], None] | None = None

    def send(self, *_: object) -> None:
        assert self.on_unread is not None
        self.on_unread()


async def test_kv_for_a_client_that_has_just_left_is_freed(group: ProxyRig) -> None:
    p, _, _ = three(group)
    body = orjson.dumps({"model": MODEL, "max_tokens": 1, "kv_transfer_params": KEEP})
    request = HttpRequest(
        "POST", "/v1/completions", {}, body, 0.0, keep_alive=True, http_1_1=True, size=len(body)
    )
    await PrefillLegs(p.context).serve(request, GoneReply())  # type: ignore[arg-type]
    await eventually(lambda: not p.stub.held and not p.held, "the engine has freed it")


async def test_a_release_that_no_decode_can_do_waits_for_the_lease(group: ProxyRig) -> None:
    p, d, other = three(group)
    await p.generate("a")
    await d.stub.kill()
    await other.stub.kill()
    await p.ask("POST", "/pdserve/v1/release", {"request_id": "a"})
    answers = [await p.generate("b"), await p.generate("c")]
    assert [a.status for a in answers] == [200, 503]


async def test_kv_that_nothing_pulls_is_given_up_with_its_lease() -> None:
    async with rig(lease_seconds=0.2) as made:
        p = made.instances["p0"]
        await p.generate("a")
        assert p.held == 1
        await eventually(lambda: not p.held, "the lease ends")


async def test_a_release_ends_a_running_prefill(group: ProxyRig) -> None:
    p, _, _ = three(group)
    p.stub.token_gate = asyncio.Event()
    running = asyncio.create_task(p.generate("a"))
    await eventually(lambda: p.stub.running == 1, "it runs")
    await p.ask("POST", "/pdserve/v1/release", {"request_id": "a"})
    await eventually(lambda: p.stub.running == 0 and p.executing == 0, "it is aborted")
    assert p.stub.events["aborted"] == 1
    running.cancel()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_the_engines_request(
    group: ProxyRig, stream: bool
) -> None:
    p, d, _ = three(group)
    params = kv(await p.generate("a"))
    d.stub.token_gate = asyncio.Event()
    _, writer = await asyncio.open_connection("127.0.0.1", d.port)
    body = orjson.dumps(
        {"model": MODEL, "prompt": "x", "stream": stream, "kv_transfer_params": params}
    )
    head = f"POST /v1/completions HTTP/1.1\r\nauthorization: {AUTH['authorization']}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await eventually(lambda: d.stub.running == 1, "it runs")
    writer.close()
    await eventually(lambda: d.stub.running == 0 and d.executing == 0, "it is aborted")
    assert d.stub.events["aborted"] == 1


async def test_a_slow_reader_holds_the_engine_back(group: ProxyRig) -> None:
    p, d, _ = three(group)
    params = kv(await p.generate("a"))
    d.stub.padding = 200_000
    reader, writer = await asyncio.open_connection("127.0.0.1", d.port, limit=1000)
    ask = {
        "model": MODEL, "prompt": "x", "stream": True, "max_tokens": 400,
        "kv_transfer_params": params,
    }  # fmt: skip
    body = orjson.dumps(ask)
    head = f"POST /v1/completions HTTP/1.1\r\nauthorization: {AUTH['authorization']}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await eventually(lambda: d.stub.written > 200_000, "it streams")
    taken, still = -1, 0
    while still < 20:
        await asyncio.sleep(0.02)
        still = still + 1 if d.stub.written == taken else 0
        taken = d.stub.written
    # Buffers of the kernel, on two connections, take up to some 25 MB.
    assert taken < 50_000_000, "of 80 MB"
    read = 0
    while piece := await reader.read(1 << 20):
        read += len(piece)
        if piece.endswith(b"0\r\n\r\n"):
            break
    assert read > 80_000_000
    writer.close()


async def test_a_drain_refuses_new_work_and_reports_what_is_left(group: ProxyRig) -> None:
    p, d, _ = three(group)
    params = kv(await p.generate("a"))
    report = (await p.ask("POST", "/pdserve/v1/drain")).json
    assert report == {"executing": 0, "holding": 1, "streams": 0}
    refused = await p.generate("b")
    assert (refused.status, refused.headers["x-pdserve-reject"]) == (503, "draining")
    assert (await p.ask("GET", "/readyz")).status == 503
    assert (await d.generate(kv_transfer_params=params)).status == 200
    await eventually(lambda: not p.held, "pulled")
    assert (await p.ask("POST", "/pdserve/v1/drain")).json["holding"] == 0


async def test_a_deadline_that_has_passed_is_refused(group: ProxyRig) -> None:
    p, _, _ = three(group)
    answer = await p.ask(
        "POST", "/v1/completions", {"model": MODEL}, **{"x-pdserve-deadline-ms": "0"}
    )
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (503, "deadline")
    assert p.stub.events["requests"] == 0


@pytest.mark.parametrize(
    ("role", "params"),
    [("p0", None), ("p0", {"do_remote_decode": False}), ("p0", []), ("d0", KEEP), ("d0", None)],
)
async def test_a_leg_of_the_other_role_is_refused(
    group: ProxyRig, role: str, params: object
) -> None:
    """An engine would serve it alone, with no place for its KV."""
    instance = group.instances[role]
    answer = await instance.generate(kv_transfer_params=params)
    assert (answer.status, answer.json["error"]["code"]) == (400, "wrong_role")
    assert (instance.stub.seen, instance.executing) == ([], 0)


async def test_kv_is_pulled_from_peers_of_the_table_alone(group: ProxyRig) -> None:
    p, d, _ = three(group)
    params = {**kv(await p.generate("a")), "remote_host": "192.0.2.1"}
    answer = await d.generate(kv_transfer_params=params)
    assert (answer.status, answer.headers["x-pdserve-reject"]) == (502, "kv_failed")
    assert d.stub.seen == []


async def test_a_whole_reply_frees_the_prefills_slot_before_its_end() -> None:
    async with rig(pull_seconds=0.05) as made:
        p, d = made.instances["p0"], made.instances["d0"]
        params = kv(await p.generate("a"))
        d.stub.token_gate = asyncio.Event()
        running = asyncio.create_task(d.generate(kv_transfer_params=params))
        await eventually(lambda: not p.held, "the slot is free")
        assert not running.done()
        d.stub.token_gate.set()
        assert (await running).status == 200
