"""A prompt whose beginning is cached is admitted though all of it would take too long."""

from __future__ import annotations

from tests.support.gateway_rig import SLO, Rig

from pdserve.wire import metrics as names

TEXT = "".join(f"{n} " for n in range(1500))


async def test_what_is_cached_need_not_be_computed_in_time(rig: Rig) -> None:
    made = [await rig.engine("prefill", f"p{n}") for n in range(2)]
    made.append(await rig.engine("decode", "d"))
    await rig.start()
    await rig.routes(made, prefix_affinity=True)
    assert (await rig.complete(prompt=TEXT)).status == 200
    scheduler, _, _ = rig.gateway.service.scheduler("tiny", {})
    tokens = scheduler.estimate.per_byte * len(TEXT)
    for _ in range(3):  # all of such a prompt takes too long, a fifth does not
        scheduler.prefill_times.learn(tokens, 2 * SLO.ttft)
    slow = (0.0, 2 * SLO.ttft / tokens)
    await rig.routes(made, prefix_affinity=True, prefill_seconds=slow)
    scheduler.try_anyway(1e12)  # no trial from now on

    refused = await rig.complete(prompt="#" + TEXT)
    assert (refused.status, refused.json["error"]["code"]) == (503, "deadline_infeasible")
    assert (await rig.complete(prompt=TEXT)).status == 200
    assert await rig.metric(names.GATEWAY_EXPIRED, stage="arrival") == 1
