"""Instances that die or fail, with real sockets: which requests are repeated, and which end."""

import asyncio
import itertools

import pytest
from tests.support.gateway_rig import Rig, eventually

from pdserve.forwarding.budget import LEAST_RESERVE
from pdserve.forwarding.request.effects import Settings
from pdserve.terms import ROLES, Slo
from pdserve.wire import metrics as names


async def test_kv_goes_to_another_decode_when_one_dies_before_its_first_byte(rig: Rig) -> None:
    await rig.one_group(decodes=2)
    rig.engines["d0"].script = rig.engines["d1"].script = ["reset"]
    assert (await rig.complete(stream=True)).text == "t0 t1 t2 t3 "
    assert rig.engines["p0"].events["attempts"] == 1
    assert sum(rig.engines[n].events["attempts"] for n in ("d0", "d1")) == 2
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 0


async def test_killed_prefill_loses_no_request(rig: Rig) -> None:
    await rig.one_group(prefills=2)
    dying = rig.engines["p0"]
    for name in ("p0", "p1"):
        rig.engines[name].prefill_seconds = 0.03
    tasks = [asyncio.create_task(rig.complete(stream=True)) for _ in range(6)]
    await eventually(lambda: dying.running == 1, "a request in the dying prefill")
    await dying.kill()
    answers = await asyncio.gather(*tasks)
    assert [a.status for a in answers] == [200] * 6
    assert await rig.metric(names.GATEWAY_EJECTED, instance="p0") == 1


async def test_a_request_lost_late_in_a_dying_prefill_gets_its_deadline_again(rig: Rig) -> None:
    await rig.one_group(prefills=2, slo=Slo(ttft=0.3, handoff=0.2, tpot=0.1, attainment=0.9))
    prefills = [rig.engines["p0"], rig.engines["p1"]]
    for prefill in prefills:
        prefill.gate = asyncio.Event()
    task = asyncio.create_task(rig.complete(stream=True))
    await eventually(lambda: any(p.running for p in prefills), "accepted")
    dying, other = prefills if prefills[0].running else reversed(prefills)
    started = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() - started > 0.35, "target missed")
    await dying.kill()
    assert other.gate is not None
    other.gate.set()
    assert (await task).status == 200
    assert await rig.metric(names.GATEWAY_SLO_MET) == 0
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="completed") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_killed_decode_loses_no_request_that_was_not_streaming(
    rig: Rig, stream: bool
) -> None:
    """`cut:0`: the decode has pulled the KV, then dies; only a new prefill can help."""
    await rig.one_group(decodes=2)
    rig.engines["d0"].script = rig.engines["d1"].script = ["cut:0"]  # whichever is asked first
    answer = await rig.complete(stream=stream)
    assert answer.text == "t0 t1 t2 t3 "
    assert rig.engines["p0"].events["attempts"] == 2
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="completed") == 1
    assert await rig.metric(names.GATEWAY_OFFERED) == 1


@pytest.mark.parametrize("seed", range(8))
async def test_a_second_prefill_is_not_spent_where_no_decode_is_left(rig: Rig, seed: int) -> None:
    """Two groups of one decode each: the prefill of the group that lost it looks idle."""
    groups = [[await rig.engine(role, f"{role}{i}", slots=8) for role in ROLES] for i in range(2)]
    await rig.start(seed=seed)
    await rig.routes(*groups)
    lost = groups[seed % 2][1]
    lost.breaks_on, lost.mortal = "hello", True
    while not lost.events["broken"]:
        assert (await rig.complete(stream=True)).text == "t0 t1 t2 t3 "
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 0


async def test_second_prefills_that_saved_a_request_come_to_no_end(rig: Rig) -> None:
    """More requests than the retry budget holds, one after the other, each loses a decode."""
    await rig.one_group(decodes=2)
    budget = rig.gateway.service.scheduler("tiny", {})[0].budget
    for _ in range(LEAST_RESERVE + 5):
        rig.engines["d0"].script = rig.engines["d1"].script = ["cut:0"]
        assert (await rig.complete()).status == 200
        rig.engines["d0"].script = rig.engines["d1"].script = []
    assert budget.available == LEAST_RESERVE


@pytest.mark.parametrize("reason", ["kv_failed", "kv_corrupt"])
async def test_prefill_that_lost_the_kv_is_repeated_once_within_the_budget(
    rig: Rig, reason: str
) -> None:
    await rig.one_group(decodes=2)
    rig.engines["d0"].script = [reason]
    rig.engines["d1"].script = [reason]
    answer = await rig.complete(stream=True)
    assert answer.text == "t0 t1 t2 t3 "
    prefill = rig.engines["p0"]
    assert len(prefill.seen) - prefill.events["rejected full"] == 2
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    while scheduler.budget.take():
        pass
    rig.engines["d0"].script = [reason]
    rig.engines["d1"].script = [reason]
    answer = await rig.complete(stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    assert len(prefill.seen) - prefill.events["rejected full"] == 3


@pytest.mark.parametrize("script", ["cut:2", "error:2"])
async def test_a_stream_that_began_is_never_retried(rig: Rig, script: str) -> None:
    await rig.one_group(decodes=2)
    for name in ("d0", "d1"):
        rig.engines[name].script = [script]
    answer = await rig.complete(stream=True)
    assert answer.status == 200
    assert answer.text == "t0 t1 "
    errors = [e for e in answer.events if isinstance(e, dict) and "error" in e]
    assert len(errors) == 1
    assert sum(rig.engines[n].events["attempts"] for n in ("d0", "d1")) == 1
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1
    assert await rig.metric(names.GATEWAY_SLO_MET) == 0


async def test_a_request_that_breaks_engines_is_not_shown_to_all(rig: Rig) -> None:
    await rig.one_group(prefills=4)
    for i in range(4):
        rig.engines[f"p{i}"].script = ["500"] * 9
    answer = await rig.complete()
    assert answer.status == 502
    assert sum(rig.engines[f"p{i}"].events["attempts"] for i in range(4)) == 2


@pytest.mark.parametrize(
    ("fault", "seed"),
    [("hang", 0), ("hang", 1), *itertools.product(("500", "forgets"), range(4))],
)
async def test_a_request_that_a_prefill_failed_goes_to_the_other(
    rig: Rig, fault: str, seed: int
) -> None:
    """However the choice between them falls: the one that failed looks as idle as the other."""
    # Silence counts as a fault after three times the TTFT target and a second.
    slo = Slo(ttft=0.5 if fault == "hang" else 60.0, handoff=60.0, tpot=1.0, attainment=0.9)
    await rig.one_group(prefills=2, decodes=2, slo=slo, seed=seed)
    rig.engines["p1"].hints = rig.engines["p0"].hints = False
    rig.engines["p0"].script = [fault] * 9
    answers = await asyncio.gather(*(rig.complete() for _ in range(2)))
    assert [a.status for a in answers] == [200, 200]


async def test_overlong_silence_in_a_stream_ends_it(rig: Rig) -> None:
    await rig.one_group(settings=Settings(stream_silence=2.0))
    rig.engines["d0"].token_seconds = 30
    answer = await rig.complete(stream=True)
    assert "stream silent" in answer.events[-1]["error"]["message"]
