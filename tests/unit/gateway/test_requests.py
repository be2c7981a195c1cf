"""A request through prefill and decode, as the client sees it."""

import asyncio
from pathlib import Path

import pytest
from tests.support.gateway_rig import SLO, Rig, eventually

from pdserve.engines.credentials import Credential
from pdserve.wire import metrics as names


@pytest.mark.parametrize("endpoint", ["complete", "chat"])
@pytest.mark.parametrize("stream", [False, True])
async def test_answer_comes_from_decode_with_the_prefill_s_kv(
    rig: Rig, endpoint: str, stream: bool
) -> None:
    await rig.one_group()
    answer = await getattr(rig, endpoint)(max_tokens=5, stream=stream)
    assert answer.status == 200
    assert answer.text == "t0 t1 t2 t3 t4 "
    prefill, decode = rig.engines["p0"], rig.engines["d0"]
    sent = prefill.seen[0]
    assert sent["max_tokens"] == 1
    assert sent["stream"] is False
    assert "stream_options" not in sent
    assert sent["kv_transfer_params"]["do_remote_decode"] is True
    got = decode.seen[0]["kv_transfer_params"]
    assert got["do_remote_prefill"] is True
    assert got["pdserve"] == {"first_token_ids": [0]}
    assert not prefill.held
    assert not prefill.released


async def test_usage_is_asked_for_and_taken_out_unless_the_client_wants_it(rig: Rig) -> None:
    await rig.one_group()
    plain = await rig.complete(stream=True)
    assert rig.engines["d0"].seen[0]["stream_options"] == {"include_usage": True}
    assert [e for e in plain.events if isinstance(e, dict) and not e["choices"]] == []
    assert plain.events[-1] == "[DONE]"
    asked = await rig.complete(stream=True, stream_options={"include_usage": True})
    assert asked.events[-2]["usage"]["completion_tokens"] == 4
    assert asked.events[-2]["choices"] == []
    assert await rig.metric(names.GATEWAY_OUTPUT_TOKENS) == 8


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["complete", "chat"])
async def test_token_one_that_ends_the_request_needs_no_decode(
    rig: Rig, endpoint: str, stream: bool
) -> None:
    await rig.one_group()
    rig.engines["p0"].stop_at_first = True
    answer = await getattr(rig, endpoint)(stream=stream, max_tokens=8)
    assert answer.text == "t0"
    if stream:
        assert answer.events[-1] == "[DONE]"
        assert answer.events[-2]["choices"][0]["finish_reason"] == "stop"
    else:
        assert "kv_transfer_params" not in answer.json
        assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert rig.engines["d0"].seen == []
    assert await rig.metric(names.GATEWAY_SLO_MET) == 1


async def test_one_token_wanted_releases_the_kv(rig: Rig) -> None:
    await rig.one_group()
    answer = await rig.complete(max_tokens=1)
    assert answer.text == "t0"
    prefill = rig.engines["p0"]
    await eventually(lambda: len(prefill.released) == 1, "release")
    assert not prefill.held


async def test_both_legs_carry_the_gateways_credential_also_after_a_rotation(
    rig: Rig, tmp_path: Path
) -> None:
    now, file = [0.0], tmp_path / "request"
    file.write_text("first")
    await rig.one_group(credential=Credential(file=file, clock=lambda: now[0]))
    await rig.complete(max_tokens=2, headers={"authorization": "Bearer the client's own"})
    file.write_text("second\nfirst")
    now[0] = 2.0
    await rig.complete(max_tokens=2)
    for engine in rig.engines.values():
        sent = [h[b"authorization"] for h in engine.headers]
        assert sent == [b"Bearer first", b"Bearer second"]


async def test_request_id_comes_back_and_legs_have_unique_ones(rig: Rig) -> None:
    await rig.one_group()
    for _ in range(2):
        answer = await rig.complete(headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
    legs = [h[b"x-request-id"] for h in rig.engines["p0"].headers]
    assert all(leg.startswith(b"mine-1-") for leg in legs)
    assert len(set(legs)) == 2
    made = await rig.complete(headers={"x-request-id": "bad id\t"})
    assert made.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_names_scenario_and_instances(rig: Rig, stream: bool) -> None:
    await rig.one_group()
    headers = (await rig.complete(stream=stream)).headers
    assert headers["x-pdserve-scenario"] == "chat"
    assert headers["x-pdserve-prefill"] == rig.engines["p0"].route().id
    assert headers["x-pdserve-decode"] == rig.engines["d0"].route().id
    rig.engines["p0"].stop_at_first = True
    headers = (await rig.complete(stream=stream)).headers
    assert headers["x-pdserve-prefill"] == rig.engines["p0"].route().id
    assert "x-pdserve-decode" not in headers
    refused = await rig.complete(model="no-such")
    assert "x-pdserve-scenario" not in refused.headers


async def test_scenario_by_model_name_is_served_under_the_engines_model(rig: Rig) -> None:
    prefill = await rig.engine("prefill", "p0")
    decode = await rig.engine("decode", "d0")
    await rig.start()
    await rig.routes([prefill, decode], models=("shop-chat",), headers={"x-tier": "gold"})
    answer = await rig.complete(model="shop-chat", headers={"X-Tier": "gold"})
    assert answer.status == 200
    assert prefill.seen[0]["model"] == decode.seen[0]["model"] == "tiny"
    refused = await rig.complete(model="shop-chat")
    assert refused.status == 404
    assert "chat (model 'shop-chat' with header x-tier: gold)" in refused.json["error"]["message"]


async def test_trace_context_and_deadline_reach_both_legs(rig: Rig) -> None:
    await rig.one_group()
    await rig.complete(headers={"traceparent": "00-a-b-01"})
    for engine in rig.engines.values():
        assert engine.headers[0][b"traceparent"] == b"00-a-b-01"
        most = 1000 * (SLO.ttft + SLO.handoff)
        assert 0 < int(engine.headers[0][b"x-pdserve-deadline-ms"]) <= most


async def test_a_client_that_leaves_frees_both_legs(rig: Rig) -> None:
    await rig.one_group()
    decode = rig.engines["d0"]
    decode.token_seconds = 0.02
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"model":"tiny","prompt":"x","stream":true,"max_tokens":100000}'
    writer.write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"t1 ")
    writer.close()
    await eventually(lambda: decode.running == 0, "decode slot freed")
    view = rig.gateway.service.scheduler("tiny", {})[0].view
    await eventually(lambda: all(i.used == 0 for i in view.instances()), "accounts balance")
    assert await rig.metric(names.GATEWAY_CLIENT_CANCELLED) == 1
    assert await rig.metric(names.GATEWAY_OFFERED) == 0


async def test_a_client_that_leaves_during_prefill_frees_the_slot(rig: Rig) -> None:
    await rig.one_group()
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    task = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.running == 1, "prefill accepted")
    task.cancel()
    await eventually(lambda: prefill.running == 0, "prefill slot freed")
    view = rig.gateway.service.scheduler("tiny", {})[0].view
    await eventually(lambda: all(i.used == 0 for i in view.instances()), "accounts balance")


async def test_keep_alive_and_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    one = b"GET /v1/models/%b HTTP/1.1\r\nhost: x\r\n\r\n"
    writer.write(one % b"tiny" + one % b"nope" + one % b"tiny")
    statuses = []
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        statuses.append(head.split(b" ")[1])
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()
    assert statuses == [b"200", b"404", b"200"]


async def test_http_1_0_stream_ends_with_the_connection(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"model":"tiny","prompt":"x","stream":true}'
    writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    raw = await reader.read()
    writer.close()
    assert b"transfer-encoding" not in raw
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_a_slow_reader_pauses_the_instance_and_loses_nothing(rig: Rig) -> None:
    await rig.one_group()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, limit=1024)
    body = b'{"model":"tiny","prompt":"x","stream":true,"max_tokens":20000}'
    writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    raw = bytearray()
    while piece := await reader.read(512):
        raw += piece
    writer.close()
    assert raw.endswith(b"data: [DONE]\n\n")
    assert raw.count(b'"text":"t') == 20000
