"""Prompts that a decode computes itself, with stub engines over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.gateway_rig import Rig, eventually
from tests.support.local_stub import LocalStub

from pdserve.wire import metrics as names

TEXT = "t0 t1 t2 t3 "
LONG = "word " * 400


async def group(
    rig: Rig, decodes: int = 1, slots: int = 4, **scenario: Any
) -> tuple[LocalStub, list[LocalStub]]:
    """A gateway over one prefill and some decodes; by default short prompts are for decodes."""
    made = [await rig.engine("prefill", "p", LocalStub, slots=slots)]
    made += [await rig.engine("decode", f"d{n}", LocalStub, slots=slots) for n in range(decodes)]
    await rig.start()
    options: dict[str, Any] = {"local_prefill": "Fixed", "local_prefill_tokens": 100, **scenario}
    await rig.routes(made, **options)
    prefill, *others = [e for e in made if isinstance(e, LocalStub)]
    return prefill, others


async def local(rig: Rig, result: str) -> float:
    return await rig.metric(names.GATEWAY_LOCAL_PREFILLS, result=result)


def idle(rig: Rig) -> bool:
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    return all(i.used == 0 for i in scheduler.view.instances()) and not scheduler.dispatcher.waiting


@pytest.mark.parametrize("stream", [False, True])
async def test_a_short_prompt_has_one_leg(rig: Rig, stream: bool) -> None:
    prefill, (decode,) = await group(rig)
    answers = [await rig.complete(stream=stream), await rig.chat(stream=stream)]
    assert [a.status for a in answers] == [200, 200]
    assert [a.text for a in answers] == [TEXT, TEXT]
    assert (prefill.events["attempts"], decode.events["local"]) == (0, 2)
    assert "kv_transfer_params" not in decode.seen[0]
    assert answers[0].headers["x-pdserve-decode"] == "d0"
    assert "x-pdserve-prefill" not in answers[0].headers
    assert await local(rig, "served") == 2
    assert await rig.metric(names.GATEWAY_PROMPT_TOKENS) == 2 * decode.prompt_tokens
    assert (
        await rig.metric(names.GATEWAY_TTFT + "_count", stream="true" if stream else "false") == 2
    )
    assert idle(rig)


async def test_usage_is_shown_to_clients_that_asked_for_it(rig: Rig) -> None:
    await group(rig)
    plain = await rig.complete(stream=True)
    asked = await rig.complete(stream=True, stream_options={"include_usage": True})
    assert not [e for e in plain.events if isinstance(e, dict) and e.get("usage")]
    assert [e["usage"]["prompt_tokens"] for e in asked.events[:-1] if e.get("usage")] == [7]


@pytest.mark.parametrize(
    "scenario",
    [{"local_prefill": "Off", "local_prefill_tokens": 0}, {"local_prefill_tokens": 10}],
)
async def test_other_prompts_go_to_a_prefill(rig: Rig, scenario: dict[str, Any]) -> None:
    prefill, (decode,) = await group(rig, **scenario)
    assert (await rig.complete(prompt=LONG)).text == TEXT
    assert (prefill.events["attempts"], decode.events["local"]) == (1, 0)


async def test_a_decode_of_an_older_version_is_asked_once(rig: Rig) -> None:
    prefill, (decode,) = await group(rig)
    decode.knows_local = False
    for _ in range(3):
        assert (await rig.complete()).text == TEXT
    assert (prefill.events["attempts"], decode.events["attempts"]) == (3, 4)
    assert (await local(rig, "refused"), await local(rig, "failed")) == (1, 0)


@pytest.mark.parametrize(
    "params",
    [{"do_remote_prefill": True}, {"do_remote_decode": True}, {"pdserve": {"replay": {}}}, "x"],
)
async def test_parameters_of_a_client_reach_no_decode(rig: Rig, params: object) -> None:
    """As on the way through a prefill; an engine would take the leg for one of another kind."""
    prefill, (decode,) = await group(rig)
    for _ in range(2):
        assert (await rig.complete(kv_transfer_params=params)).text == TEXT
    assert (prefill.events["attempts"], decode.events["local"]) == (0, 2)
    assert await local(rig, "served") == 2


@pytest.mark.parametrize("reason", ["tpot", "full", "deadline", "draining"])
async def test_what_a_decode_refuses_goes_to_a_prefill(rig: Rig, reason: str) -> None:
    prefill, (decode,) = await group(rig)
    decode.script = [reason]
    assert (await rig.complete()).text == TEXT
    assert (prefill.events["attempts"], decode.events["local"]) == (1, 0)
    assert await local(rig, "refused") == 1
    assert idle(rig)


@pytest.mark.parametrize(("reason", "serves"), [("tpot", True), ("draining", False)])
async def test_a_decode_that_computes_no_prompt_still_takes_kv(
    rig: Rig, reason: str, serves: bool
) -> None:
    """Its refusal says nothing of what comes from a prefill, unless it serves no more."""
    prefill, (decode,) = await group(rig)
    prefill.gate, decode.script = asyncio.Event(), [reason]
    asking = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.running == 1, "it is at the prefill")
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    record = next(i for i in scheduler.view.instances() if i.id == decode.name)
    assert (record.next_try(0.0) == 0.0) is serves, "it rests from then on"
    prefill.gate.set()
    assert (await asking).text == TEXT


async def test_a_refusal_leaves_a_decode_alone_for_a_while_and_others_are_asked(rig: Rig) -> None:
    prefill, decodes = await group(rig, decodes=2)
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    assert scheduler.local is not None
    for decode in scheduler.view.group(0).decodes:  # type: ignore[union-attr]  # routed
        if decode.id == "d0":
            scheduler.local.refused(decode, 1e12)
    for _ in range(5):
        assert (await rig.complete()).text == TEXT
    assert [d.events["local"] for d in decodes] == [0, 5]
    assert prefill.events["attempts"] == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", ["reset", "500", "cut:0", "400 cut"])
async def test_a_decode_lost_before_the_first_byte_costs_no_request(
    rig: Rig, step: str, stream: bool
) -> None:
    prefill, decodes = await group(rig, decodes=2)
    for decode in decodes:
        decode.script = [step]
    answer = await rig.complete(stream=stream)
    assert (answer.status, answer.text) == (200, TEXT)
    assert prefill.events["attempts"] == 1
    assert idle(rig)


async def test_no_decode_listens(rig: Rig) -> None:
    """All are gone from one moment to the next: the request ends as it does without a local leg."""
    prefill, decodes = await group(rig, decodes=2)
    await decodes[0].kill()
    for _ in range(4):
        assert (await rig.complete()).text == TEXT
    assert prefill.events["attempts"] <= 1
    assert await local(rig, "failed") == prefill.events["attempts"]


@pytest.mark.invariant(11)
async def test_a_request_breaks_at_most_two_instances(rig: Rig) -> None:
    prefill, decodes = await group(rig, decodes=3)
    for engine in (prefill, *decodes):
        engine.breaks_on = "poison"
    answer = await rig.complete(prompt="poison")
    assert answer.status == 502
    assert sum(e.events["broken"] for e in (prefill, *decodes)) == 2


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_stream_that_loses_its_decode_goes_on_by_way_of_a_prefill(
    rig: Rig, at: int
) -> None:
    prefill, (decode,) = await group(rig)
    decode.script = [f"cut:{at}"]
    usage = {"include_usage": True}
    answer = await rig.complete(stream=True, max_tokens=4, stream_options=usage)
    assert answer.text == TEXT
    assert not [e for e in answer.events if "error" in e]
    assert prefill.events["attempts"] == 1
    replay = prefill.seen[0]["kv_transfer_params"]["pdserve"]["replay"]
    assert replay["token_ids"] == [100 + n for n in range(at)]
    assert prefill.seen[0]["seed"] == 5
    assert await rig.metric(names.GATEWAY_CONTINUED) == 1
    assert idle(rig)


async def test_the_end_of_a_stream_is_written_with_the_prompt_that_the_decode_counted(
    rig: Rig,
) -> None:
    prefill, (decode,) = await group(rig)
    decode.script = ["unended"]
    usage = {"include_usage": True}
    answer = await rig.complete(stream=True, max_tokens=4, stream_options=usage)
    assert answer.text == TEXT
    assert answer.events[-2]["usage"]["prompt_tokens"] == decode.prompt_tokens
    assert prefill.events["attempts"] == 0


async def test_a_clients_mistake_is_an_answer(rig: Rig) -> None:
    prefill, (decode,) = await group(rig)
    decode.script = ["400"]
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["message"]) == (400, "scripted 400")
    assert (prefill.events["attempts"], await rig.metric(names.GATEWAY_OFFERED)) == (0, 0)
    assert idle(rig)


async def test_a_full_decode_is_not_asked(rig: Rig) -> None:
    """A prompt is computed where it begins at once: places to fetch ahead are for KV."""
    prefill, (decode,) = await group(rig, slots=2)
    decode.gate = asyncio.Event()
    running = [asyncio.create_task(rig.complete()) for _ in range(2)]
    await eventually(lambda: decode.events["local"] == 2, "both places are in use")
    third = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.events["attempts"] == 1, "the third goes to the prefill")
    decode.gate.set()
    assert [a.text for a in await asyncio.gather(*running, third)] == [TEXT] * 3
    assert decode.events["local"] == 2


@pytest.mark.invariant(12)
async def test_a_client_that_leaves_frees_the_decode(rig: Rig) -> None:
    _, (decode,) = await group(rig)
    decode.gate = asyncio.Event()
    leaving = asyncio.create_task(rig.complete())
    await eventually(lambda: decode.running == 1, "it computes")
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await eventually(lambda: decode.running == 0 and idle(rig), "nothing is left of it")


async def test_auto_computes_at_a_decode_what_a_handoff_takes_longer_for(rig: Rig) -> None:
    """A prompt takes next to nothing here: once a handoff was seen, any is worth it."""
    prefill, (decode,) = await group(
        rig, local_prefill="Auto", local_prefill_tokens=0, prefill_seconds=(0.0, 1e-9)
    )
    assert (await rig.complete(stream=True)).text == TEXT
    assert (prefill.events["attempts"], decode.events["local"]) == (1, 0)
    assert await rig.metric(names.GATEWAY_LOCAL_CROSSOVER) > 1000
    for stream in (True, False):
        assert (await rig.complete(stream=stream, prompt=LONG)).text == TEXT
    assert (prefill.events["attempts"], decode.events["local"]) == (1, 2)
    assert decode.headers[-1][b"x-pdserve-tpot-ms"] == b"60000"
    assert 0 < int(decode.headers[-1][b"x-pdserve-deadline-ms"]) <= 60_000


async def test_the_tpot_target_goes_to_decodes_in_mode_auto_only(rig: Rig) -> None:
    _, (decode,) = await group(rig)
    await rig.complete()
    assert decode.events["local"] == 1
    assert b"x-pdserve-tpot-ms" not in decode.headers[-1]


@pytest.mark.parametrize(("stream", "most"), [(True, 40_000), (False, 60_000)])
async def test_a_prefill_leaves_a_stream_the_time_of_its_handoff(
    rig: Rig, stream: bool, most: int
) -> None:
    prefill, _ = await group(rig, local_prefill="Off", local_prefill_tokens=0)
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    scheduler.handoff.learn(20.0, 0.0)
    assert (await rig.complete(stream=stream)).text == TEXT
    left = int(prefill.headers[0][b"x-pdserve-deadline-ms"])
    assert most - 20_000 < left <= most


async def test_the_handoff_takes_at_most_half_of_the_target(rig: Rig) -> None:
    prefill, _ = await group(rig, local_prefill="Off", local_prefill_tokens=0)
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    scheduler.handoff.learn(500.0, 0.0)
    assert (await rig.complete(stream=True)).text == TEXT
    assert int(prefill.headers[0][b"x-pdserve-deadline-ms"]) > 10_000
