"""On-demand forwarding with real sockets: rejections, overload, groups; and what is counted."""

import asyncio
import dataclasses
import time

import pytest
from tests.support.gateway_rig import SLO, Rig, eventually

from pdserve.engines import registry
from pdserve.engines.pull_flow import PullFlow
from pdserve.forwarding.request.effects import Settings
from pdserve.terms import Slo
from pdserve.wire import metrics as names
from pdserve.wire.routes import RouteGroup


async def test_a_rejection_goes_to_the_next_prefill_at_once(rig: Rig) -> None:
    await rig.one_group(prefills=2)
    for engine in (rig.engines["p0"], rig.engines["p1"]):
        engine.hints = False
    rig.engines["p0"].script = ["full"] * 9
    for _ in range(4):
        assert (await rig.complete()).status == 200
    assert rig.engines["p1"].events["attempts"] == 4
    assert await rig.metric(names.GATEWAY_REJECTIONS, leg="prefill", reason="full") >= 1


async def test_requests_wait_at_the_gateway_and_never_in_an_instance(rig: Rig) -> None:
    await rig.one_group(prefills=2)
    for name in ("p0", "p1"):
        rig.engines[name].prefill_seconds = 0.02
    answers = await asyncio.gather(*(rig.complete(stream=True) for _ in range(12)))
    assert [a.status for a in answers] == [200] * 12
    assert max(rig.engines[n].max_used for n in ("p0", "p1")) == 1
    attempts = sum(rig.engines[n].events["attempts"] for n in ("p0", "p1"))
    assert attempts <= 12 * 40, "the pace bounds them"
    assert await rig.metric(names.GATEWAY_WAITING) == 0


async def test_deadline_passed_is_503_with_a_measured_retry_after(rig: Rig) -> None:
    await rig.one_group(slo=Slo(ttft=0.05, handoff=0.05, tpot=0.1, attainment=0.9))
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    first = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.running == 1, "prefill busy")
    answer = await rig.complete()
    assert answer.status == 503
    assert answer.json["error"]["code"] == "deadline_exceeded"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-should-retry"] == "false"
    prefill.gate.set()
    assert (await first).status == 200
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="expired") == 1
    assert await rig.metric(names.GATEWAY_EXPIRED, stage="before_prefill") == 1
    assert await rig.metric(names.GATEWAY_OFFERED) == 2


async def test_a_prompt_too_long_for_the_target_is_refused_once_that_was_seen(rig: Rig) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    slo = Slo(ttft=0.2, handoff=60.0, tpot=60.0, attainment=0.9)
    await rig.routes(made, slo=slo, prefill_seconds=(0.1, 0.01))
    made[0].prompt_tokens, made[0].prefill_seconds = 102, 0.3
    for _ in range(4):  # three to be sure, one that is due to be tried
        assert (await rig.complete(prompt=[1] * 100)).status == 200
    answer = await rig.complete(prompt=[1] * 100)
    error = answer.json["error"]
    assert (answer.status, error["code"]) == (503, "deadline_infeasible")
    assert "prefill of about 100 tokens takes about 0." in error["message"]
    assert 0 < error["left_ms"] <= 200 < error["needed_ms"] <= 1155
    assert int(answer.headers["x-pdserve-needed-ms"]) == error["needed_ms"]
    assert int(answer.headers["x-pdserve-left-ms"]) == error["left_ms"]
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    assert 0 < int(answer.headers["retry-after-ms"]) <= 10_000
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert await rig.metric(names.GATEWAY_EXPIRED, stage="arrival") == 1
    counted = (names.GATEWAY_ARRIVED, names.GATEWAY_ARRIVED_PROMPT_TOKENS, names.GATEWAY_INFEASIBLE)
    assert [round(await rig.metric(name)) for name in counted] == [4, 400, 1]
    assert b"x-pdserve-deadline-ms" not in made[0].headers[-1], "it was tried without a deadline"
    # When the retry is due it is tried, and heals what is no longer true.
    scheduler.next_trial, made[0].prefill_seconds = 0.0, 0.0
    assert [(await rig.complete(prompt=[1] * 100)).status for _ in range(9)] == [200] * 9


@pytest.mark.parametrize("factor", [1.0, 100.0], ids=["right", "far too pessimistic"])
async def test_an_idle_service_refuses_no_prompt_that_it_can_serve(rig: Rig, factor: float) -> None:
    """1,000 prompts of mixed length, right after start, whatever the profile predicts."""
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    slo = Slo(ttft=60.0, handoff=60.0, tpot=60.0, attainment=0.9)
    await rig.routes(made, slo=slo, prefill_seconds=(0.01 * factor, 0.02 * factor))
    lengths = [1 + (i * 7919) % 900 for i in range(1000)]
    statuses = []
    for length in lengths:
        made[0].prompt_tokens = length
        statuses.append((await rig.complete(prompt="word " * length, max_tokens=1)).status)
    assert statuses == [200] * 1000


async def test_odd_chats_do_not_make_other_prompts_too_long(rig: Rig) -> None:
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    await rig.routes(made, prefill_seconds=(0.0, 0.01))
    made[0].prompt_tokens = 300 * 15
    messages = [{"role": "user", "content": "x"}] * 300
    for _ in range(50):
        assert (await rig.chat(messages=messages, max_tokens=1)).status == 200
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    assert scheduler.estimate.per_byte < 0.6
    made[0].prompt_tokens = 250
    assert (await rig.complete(prompt="word " * 200, max_tokens=1)).status == 200


async def test_an_engine_s_refusal_for_its_deadline_is_tried_now_and_then(rig: Rig) -> None:
    await rig.one_group()
    rig.engines["p0"].script = ["deadline"]
    assert (await rig.complete()).status == 200, "asked again without a deadline"
    rig.engines["p0"].script = ["deadline"]
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (503, "deadline_exceeded")
    assert {"needed_ms", "left_ms", "retry_after_ms"} <= set(answer.json["error"])


async def test_a_full_waiting_room_refuses_newcomers(rig: Rig) -> None:
    await rig.one_group(room_limit=1)
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    busy = [asyncio.create_task(rig.complete())]
    await eventually(lambda: prefill.running == 1, "prefill busy")
    busy.append(asyncio.create_task(rig.complete()))
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: scheduler.dispatcher.waiting == 1, "room full")
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (503, "waiting_room_full")
    prefill.gate.set()
    assert [a.status for a in await asyncio.gather(*busy)] == [200, 200]


async def test_decode_rejections_try_every_decode_of_the_group(rig: Rig) -> None:
    await rig.one_group(decodes=3)
    for name in ("d0", "d1"):
        rig.engines[name].script = ["full"]
    for _ in range(3):
        assert (await rig.complete(stream=True)).text == "t0 t1 t2 t3 "


async def test_a_request_outlives_the_lease_of_its_kv(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a target far beyond it: no decode has room meanwhile, as while a group is replaced."""
    monkeypatch.setattr(registry, "flow", lambda name: PullFlow(lease_seconds=5.0))
    await rig.one_group()
    prefill, decode = rig.engines["p0"], rig.engines["d0"]
    decode.script = ["draining"] * 10_000
    task = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.events["attempts"] == 2, "a second prefill")
    decode.script = []
    assert (await task).text == "t0 t1 t2 t3 "
    await eventually(lambda: not prefill.held, "the first KV is released")


async def test_a_request_outlives_one_lease_and_no_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "flow", lambda name: PullFlow(lease_seconds=2.2))
    await rig.one_group()
    rig.engines["d0"].script = ["full"] * 10_000
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (503, "decode_overload")
    assert rig.engines["p0"].events["attempts"] == 2


async def test_decode_overload_is_503_and_releases_the_kv(rig: Rig) -> None:
    await rig.one_group(slo=Slo(ttft=0.1, handoff=0.05, tpot=0.1, attainment=0.9))
    rig.engines["d0"].script = ["full"] * 99
    answer = await rig.complete(stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (503, "decode_overload")
    await eventually(lambda: not rig.engines["p0"].held, "KV released")
    assert rig.engines["d0"].events["attempts"] <= 2 * 1 + 8
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="decode_overload") == 1


async def test_full_decodes_stop_prefills_and_are_named_as_the_reason(rig: Rig) -> None:
    # The streams have time to begin, and none ends before the answer; only the last is in a hurry.
    await rig.one_group(settings=Settings(stream_silence=600.0))
    rig.engines["d0"].token_seconds = 600.0
    streams = [asyncio.create_task(rig.complete(stream=True)) for _ in range(3)]
    await eventually(lambda: rig.engines["d0"].running == 3, "decode full")
    slo = Slo(ttft=0.5, handoff=0.05, tpot=1.0, attainment=0.9)
    await rig.routes([rig.engines["p0"], rig.engines["d0"]], slo=slo)
    answer = await rig.complete(stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (503, "decode_overload")
    assert rig.engines["p0"].events["attempts"] == 3, "no prefill was wasted on it"
    for stream in streams:
        stream.cancel()


@pytest.mark.invariant(1)
async def test_only_routed_instances_get_requests(rig: Rig) -> None:
    """Draining and removed instances are out of the table; nothing may reach them."""
    p0, p1 = await rig.engine("prefill", "p0"), await rig.engine("prefill", "p1")
    d0, d1 = await rig.engine("decode", "d0"), await rig.engine("decode", "d1")
    await rig.start()
    await rig.routes([p0, d0])
    assert all([(await rig.complete()).status == 200 for _ in range(5)])
    assert not p1.seen
    assert not d1.seen
    await rig.routes([p1, d1])
    before = (len(p0.seen), len(d0.seen))
    answers = await asyncio.gather(*(rig.complete(stream=True) for _ in range(20)))
    assert {a.status for a in answers} == {200}
    assert (len(p0.seen), len(d0.seen)) == before


@pytest.mark.invariant(1)
async def test_a_request_never_waits_inside_an_instance(rig: Rig) -> None:
    """Whatever hints claim, no instance ever holds more requests than it has slots."""
    await rig.one_group(prefills=2, decodes=2)
    for engine in rig.engines.values():
        engine.hint_override = (b"9/9", b"0")  # wrong: always free
        engine.prefill_seconds = engine.token_seconds = 0.003
    answers = await asyncio.gather(*(rig.complete(stream=True) for _ in range(24)))
    assert {a.status for a in answers} <= {200, 503}
    assert [a.status for a in answers].count(200) >= 12
    for engine in rig.engines.values():
        assert engine.max_used <= engine.capacity


async def test_requests_stay_in_the_group_of_their_prefill(rig: Rig) -> None:
    groups = [
        [await rig.engine("prefill", f"p{g}"), await rig.engine("decode", f"d{g}")]
        for g in range(2)
    ]
    await rig.start()
    await rig.routes(*groups)
    answers = await asyncio.gather(*(rig.complete(stream=True) for _ in range(20)))
    assert {a.status for a in answers} == {200}
    for g in range(2):
        assert rig.engines[f"p{g}"].events["attempts"] > 0
        assert rig.engines[f"d{g}"].events["rejected kv_failed"] == 0


@pytest.mark.parametrize("lost", [False, True])
async def test_kv_of_a_group_that_left_goes_to_its_decode_and_else_to_another_group(
    rig: Rig, lost: bool
) -> None:
    old = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    new = [await rig.engine("prefill", "p1"), await rig.engine("decode", "d1")]
    await rig.start()
    table = await rig.routes(old)
    old[0].gate = asyncio.Event()
    task = asyncio.create_task(rig.complete(stream=True))
    await eventually(lambda: old[0].running == 1, "in the old group's prefill")
    group = RouteGroup(1, "r1", tuple(e.route() for e in new))
    scenario = dataclasses.replace(table.scenarios[0], groups=(group,))
    await rig.source.push(dataclasses.replace(table, version=2, scenarios=(scenario,)))
    if lost:
        await old[1].kill()
    old[0].gate.set()
    assert (await task).text == "t0 t1 t2 t3 "
    assert len(new[0].seen) == len(new[1].seen) == lost
    await eventually(lambda: not old[0].held, "KV of the old group released")


async def test_metrics_cover_every_offered_request(rig: Rig) -> None:
    await rig.one_group()
    for name in (names.GATEWAY_OFFERED, names.GATEWAY_SLO_MET, names.GATEWAY_COMPLETED):
        assert await rig.metric(name, service="shop", scenario="chat") == 0
    text = (await rig.request("GET", "/metrics")).body.decode()
    assert 'outcome_total{service="shop",scenario="chat",outcome="failed"} 0' in text
    assert (
        f'ttft_seconds_bucket{{service="shop",scenario="chat",stream="true",le="{SLO.ttft!r}"}}'
        " 0" in text
    )

    rig.engines["d0"].token_seconds = 0.03
    lasted: list[float] = []
    tpots: list[float] = []
    for stream in (True, False):
        began = time.perf_counter()
        await rig.complete(stream=stream, max_tokens=6)
        lasted.append(time.perf_counter() - began)
        tpots.append(await rig.metric(names.GATEWAY_TPOT + "_sum") - sum(tpots))
    assert await rig.metric(names.GATEWAY_OFFERED) == 2
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="completed") == 2
    assert await rig.metric(names.GATEWAY_SLO_MET) == 2
    assert await rig.metric(names.GATEWAY_PROMPT_TOKENS) == 14
    assert await rig.metric(names.GATEWAY_OUTPUT_TOKENS) == 12
    assert await rig.metric(names.GATEWAY_CACHED_TOKENS) == 4
    assert await rig.metric(names.GATEWAY_ATTEMPTS, leg="prefill") == 2
    assert await rig.metric(names.GATEWAY_HANDOFF + "_count") == 1
    assert await rig.metric(names.GATEWAY_TPOT + "_count") == 2
    # Streamed, a pause between two tokens moves time between TTFT, handoff and TPOT.
    ttft = await rig.metric(names.GATEWAY_TTFT + "_sum", stream="true")
    handoff = await rig.metric(names.GATEWAY_HANDOFF + "_sum")
    assert 5 * 0.03 <= ttft + handoff + 4 * tpots[0] <= lasted[0]
    assert 5 * 0.03 <= 5 * tpots[1] <= lasted[1]
    assert await rig.metric(names.GATEWAY_ROUTE_VERSION, service="shop") == 1


async def test_graceful_stop_finishes_streams_and_takes_no_new_ones(rig: Rig) -> None:
    await rig.one_group()
    rig.engines["d0"].token_seconds = 0.01
    task = asyncio.create_task(rig.complete(stream=True, max_tokens=20))
    await eventually(lambda: rig.engines["d0"].running == 1, "streaming")
    stop = asyncio.create_task(rig.gateway.stop())
    answer = await task
    assert answer.text.endswith("t19 ")
    assert answer.events[-1] == "[DONE]"
    await stop
    with pytest.raises(ConnectionRefusedError):
        await rig.complete()
