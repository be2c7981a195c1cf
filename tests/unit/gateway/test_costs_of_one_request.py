"""What one request may cost the service: two instances at most, and nothing once it is gone."""

import asyncio

import pytest
from tests.support.gateway_rig import Rig, eventually

from pdserve.forwarding.request.state import LOST_TIME, grace_seconds
from pdserve.terms import Slo
from pdserve.wire import metrics as names

POISON = "query of death"


async def idle(rig: Rig) -> None:
    """Wait until neither the gateway nor an engine counts anything."""
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: not any(e.used for e in rig.engines.values()), "engines hold nothing")
    await eventually(
        lambda: all(i.used == 0 for i in scheduler.view.instances()), "accounts balance"
    )
    assert scheduler.dispatcher.waiting == 0


@pytest.mark.invariant(12)
@pytest.mark.parametrize("phase", ["waiting", "computing", "replying", "decoding"])
async def test_a_client_that_leaves_holds_nothing(rig: Rig, phase: str) -> None:
    """Whatever the moment: the prefill hears the leg's name, and its slot serves the next."""
    await rig.one_group()
    prefill, decode = rig.engines["p0"], rig.engines["d0"]
    gate = asyncio.Event()
    decode.token_seconds = 600.0 if phase == "decoding" else 0.0
    if phase in ("waiting", "computing"):
        prefill.gate = gate
    elif phase == "replying":
        prefill.reply_gate = gate
    tasks = [asyncio.create_task(rig.complete(stream=True, max_tokens=3))]
    if phase == "decoding":
        await eventually(lambda: decode.running == 1, "decoding")
    else:
        await eventually(lambda: prefill.used == 1, "at the prefill")
    if phase == "waiting":
        scheduler = rig.gateway.service.scheduler("tiny", {})[0]
        tasks.append(asyncio.create_task(rig.complete()))
        await eventually(lambda: scheduler.dispatcher.waiting == 1, "in the room")
    for task in tasks:
        task.cancel()
    await idle(rig)
    if phase != "decoding":
        legs = [h[b"x-request-id"].decode() for h in prefill.headers]
        await eventually(lambda: set(prefill.released) == set(legs), "released by name")
    gate.set()
    decode.token_seconds = 0.0
    assert (await rig.complete()).status == 200


@pytest.mark.invariant(12)
async def test_many_clients_that_leave_at_any_time_leave_nothing(rig: Rig) -> None:
    await rig.one_group(prefills=2, decodes=2)
    for engine in rig.engines.values():
        engine.prefill_seconds = engine.token_seconds = 0.002
    for turn in range(200):
        task = asyncio.create_task(rig.complete(stream=bool(turn % 2), max_tokens=4))
        await asyncio.sleep((turn % 23) * 0.0007)
        task.cancel()
    await idle(rig)
    answers = await asyncio.gather(*(rig.complete() for _ in range(20)))
    assert [a.status for a in answers] == [200] * 20


@pytest.mark.invariant(11)
@pytest.mark.parametrize("mortal", [False, True], ids=["connection", "engine"])
@pytest.mark.parametrize("turn", range(3))
async def test_a_query_of_death_costs_two_of_eight_prefills_and_no_other(
    rig: Rig, mortal: bool, turn: int
) -> None:
    """Others that were on those prefills are served by the rest."""
    made = [await rig.engine("prefill", f"p{i}", slots=2) for i in range(8)]
    made += [await rig.engine("decode", f"d{i}", slots=16) for i in range(2)]
    await rig.start(seed=turn)
    await rig.routes(made)
    prefills = made[:8]
    for prefill in prefills:
        prefill.breaks_on, prefill.mortal = POISON, mortal
        prefill.prefill_seconds = 0.02
    honest = [asyncio.create_task(rig.complete()) for _ in range(24)]
    await eventually(lambda: sum(p.running for p in prefills) >= 8, "prefills are busy")
    poisoned = await rig.complete(prompt=POISON)
    assert (poisoned.status, poisoned.json["error"]["code"]) == (502, "upstream_error")
    assert sum(p.events["broken"] for p in prefills) == 2
    assert [a.status for a in await asyncio.gather(*honest)] == [200] * 24
    after = await asyncio.gather(*(rig.complete() for _ in range(24)))
    assert [a.status for a in after] == [200] * 24
    assert await rig.metric(names.GATEWAY_OUTCOME, outcome="failed") == 1


@pytest.mark.invariant(11)
async def test_two_lost_together_are_not_shown_to_one_instance(rig: Rig) -> None:
    """Either may be what broke it: the other must not be lost a second time."""
    made = [await rig.engine("prefill", "p0", slots=8), await rig.engine("prefill", "p1", slots=8)]
    made.append(await rig.engine("decode", "d0", slots=16))
    await rig.start()
    await rig.routes([made[0], made[2]])
    made[0].gate = asyncio.Event()
    tasks = [asyncio.create_task(rig.complete()) for _ in range(6)]
    await eventually(lambda: made[0].running == 6, "all at the first")
    made[1].gate = asyncio.Event()
    await rig.routes(made)
    await made[0].kill()
    await eventually(lambda: made[1].running == 1, "one at the second")
    newcomers = [asyncio.create_task(rig.complete()) for _ in range(3)]
    await eventually(lambda: made[1].running == 4, "others are no suspects")
    made[1].gate.set()
    answers = await asyncio.gather(*tasks, *newcomers)
    assert [a.status for a in answers] == [200] * 9
    assert made[1].max_used >= 4


@pytest.mark.invariant(11)
async def test_when_a_suspect_has_had_its_end_the_next_one_goes_at_once(rig: Rig) -> None:
    first = await rig.engine("prefill", "p0", slots=2)
    second = await rig.engine("prefill", "p1", slots=2)
    decode = await rig.engine("decode", "d0", slots=8)
    await rig.start()
    await rig.routes([first, decode])
    first.gate = asyncio.Event()
    second.breaks_on = POISON
    poisoned = asyncio.create_task(rig.complete(prompt=POISON))
    await eventually(lambda: first.running == 1, "the poisoned one is first")
    honest = asyncio.create_task(rig.complete())
    await eventually(lambda: first.running == 2, "both at the first")
    await rig.routes([first, second, decode])
    await first.kill()
    assert (await poisoned).status == 502
    assert (await honest).status == 200


@pytest.mark.parametrize("early", [True, False], ids=["early head", "old engine"])
async def test_a_killed_decode_costs_none_of_60_whole_replies(rig: Rig, early: bool) -> None:
    """Before the first byte one lost instance costs no request, whatever its slots."""
    prefills = [await rig.engine("prefill", f"p{i}", slots=4) for i in range(2)]
    decodes = [await rig.engine("decode", f"d{i}", slots=64) for i in range(2)]
    await rig.start()
    # Wide: a machine that stands still for a moment must not cost a request here.
    slo = Slo(ttft=60.0, handoff=0.5, tpot=60.0, attainment=0.9)
    await rig.routes([*prefills, decodes[0]], slo=slo)
    for decode in decodes:
        decode.early_head, decode.token_seconds = early, 600.0
    tasks = []
    for count in range(1, 61):
        tasks.append(asyncio.create_task(rig.complete(max_tokens=2)))
        await eventually(lambda count=count: decodes[0].running == count, "at the first decode")  # type: ignore[misc]
    await rig.routes([*prefills, *decodes], slo=slo)
    decodes[1].token_seconds = 0.01
    await decodes[0].kill()
    answers = await asyncio.gather(*tasks)
    assert [a.status for a in answers] == [200] * 60


async def test_a_whole_reply_frees_the_prefill_s_slot_when_its_kv_was_pulled(rig: Rig) -> None:
    """One prefill slot, many whole replies that never end: all of them reach the decode."""
    made = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0", slots=32)]
    made[1].token_seconds = 600.0
    await rig.start()
    await rig.routes(made)
    tasks = [asyncio.create_task(rig.complete()) for _ in range(20)]
    await eventually(lambda: made[1].running == 20, "all decode at once")
    for task in tasks:
        task.cancel()
    await idle(rig)


async def test_a_decode_that_dies_after_its_early_head_means_a_new_prefill(rig: Rig) -> None:
    await rig.one_group(decodes=2)
    rig.engines["d0"].script = rig.engines["d1"].script = ["cut:0"]
    answer = await rig.complete()
    assert answer.text == "t0 t1 t2 t3 "
    assert rig.engines["p0"].events["attempts"] == 2
    assert sum(rig.engines[f"d{i}"].events["attempts"] for i in range(2)) == 2


@pytest.mark.invariant(11)
@pytest.mark.parametrize("mortal", [False, True], ids=["connection", "engine"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("deadly", ["decodes", "one prefill and the decodes", "all"])
async def test_a_query_of_death_costs_two_instances_over_both_roles_together(
    rig: Rig, mortal: bool, stream: bool, deadly: str
) -> None:
    prefills = [await rig.engine("prefill", f"p{i}", slots=2) for i in range(4)]
    decodes = [await rig.engine("decode", f"d{i}", slots=16) for i in range(4)]
    breaking = {"decodes": [], "one prefill and the decodes": prefills[:1], "all": prefills}
    await rig.start()
    for engine in (*breaking[deadly], *decodes):
        engine.breaks_on, engine.mortal = POISON, mortal
    await rig.routes([*prefills, *decodes])
    if deadly == "one prefill and the decodes":
        for prefill in prefills[1:]:
            prefill.script = ["full"] * 1000  # so that it meets the one that breaks
    poisoned = asyncio.create_task(rig.complete(prompt=POISON, stream=stream))
    if deadly == "one prefill and the decodes":
        await eventually(lambda: prefills[0].events["broken"] == 1, "the first prefill broke")
        for prefill in prefills[1:]:
            prefill.script.clear()
    answer = await poisoned
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    broken = {e.name: e.events["broken"] for e in (*prefills, *decodes) if e.events["broken"]}
    assert sum(broken.values()) == len(broken) == 2, broken
    roles = {name[0] for name in broken}
    assert roles == {"decodes": {"d"}, "all": {"p"}}.get(deadly, {"p", "d"})
    answers = await asyncio.gather(*(rig.complete(stream=stream) for _ in range(12)))
    assert [a.status for a in answers] == [200] * 12


@pytest.mark.parametrize(
    ("ttft", "seconds"), [(0.01, 5), (0.2, 5), (1, 10), (2.5, 25), (10, 30), (60, 60)]
)
def test_a_request_with_grace_waits_in_proportion_to_its_target(
    ttft: float, seconds: float
) -> None:
    assert grace_seconds(ttft) == seconds


@pytest.mark.parametrize("broken", ["prefill", "decode"])
async def test_a_request_whose_instance_broke_hears_in_time_that_no_other_is_free(
    rig: Rig, broken: str
) -> None:
    """It waited 30 s, whatever its target."""
    slo = Slo(ttft=0.2, handoff=0.2, tpot=1.0, attainment=0.9)
    await rig.one_group(prefills=2, decodes=2, slo=slo)
    dying, other = (rig.engines[f"{broken[0]}{n}"] for n in range(2))
    other.script = ["full"] * 1000
    if broken == "decode":
        dying.script = ["reset", *(["full"] * 1000)]
    else:
        dying.gate = asyncio.Event()
    began = asyncio.get_running_loop().time()
    task = asyncio.create_task(rig.complete(stream=True))
    if broken == "prefill":
        await eventually(lambda: dying.running == 1, "at the one that breaks")
        # One that broke at once has cost no time: the request keeps its deadline.
        met = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() - met > LOST_TIME, "late")
        await dying.kill()
    answer = await task
    assert answer.status == {"prefill": 502, "decode": 503}[broken]
    assert dying.events["attempts"] >= 1
    assert 3 < asyncio.get_running_loop().time() - began < 25
