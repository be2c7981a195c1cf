"""A decode that computes a prompt itself: when it takes one, what it does to what runs there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import orjson
import pytest
from tests.support.engine_requests import PATH, is_idle
from tests.support.engines import Client, Group, until

from pdserve.http1.errors import ApiError
from pdserve.refengine.api import openai
from pdserve.refengine.model.loader import LoadedModel
from pdserve.refengine.runtime.batch import Batch
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.forecast import slowest_tpot
from pdserve.refengine.runtime.pacing import Pacer, load_profile
from pdserve.refengine.runtime.request import LocalLeg
from pdserve.refengine.runtime.sequence import Sequence
from pdserve.wire import calls
from pdserve.wire.calls import PARAM_KV

LOCAL = {calls.HEADER_LOCAL_PREFILL: "1"}
RUNNING = 'pdserve_engine_slots{state="running"}'


def body(**more: Any) -> dict[str, Any]:
    return {
        "model": "reference", "prompt": [7] * 40, "max_tokens": 4, "temperature": 0,
        "ignore_eos": True, **more,
    }  # fmt: skip


async def ask(group: Group, value: dict[str, Any], **headers: str) -> Any:
    url = group.decodes[0].url + PATH
    return await group.client.call("POST", url, value, headers=LOCAL | headers)


async def test_the_answer_is_that_of_the_way_through_a_prefill(start_group: Any) -> None:
    group: Group = await start_group()
    first = await group.prefill(PATH, body(seed=3))
    want = await group.decode(PATH, body(seed=3), first.body[PARAM_KV])
    got = await ask(group, body(seed=3))
    assert (got.status, got.body["choices"]) == (200, want.body["choices"])
    assert got.headers[calls.HEADER_PROMPT_TOKENS] == "40"
    assert got.headers[calls.HEADER_SEED] == "3"
    assert got.headers[calls.HEADER_CACHED_TOKENS] == "0"
    again = await ask(group, body(seed=3))
    assert again.headers[calls.HEADER_CACHED_TOKENS] == "32"
    assert again.body["choices"] == want.body["choices"]
    assert await is_idle(group.client, group.decodes[0])


async def test_places_to_fetch_ahead_compute_nothing(client: Client, start_group: Any) -> None:
    group: Group = await start_group((), ("--slots", "2", "--prefetch", "2"))
    long = [asyncio.create_task(ask(group, body(max_tokens=1500))) for _ in range(2)]
    await until(lambda: _running(client, group, 2), "both run")
    third = await ask(group, body())
    assert (third.status, third.headers[calls.HEADER_REJECT]) == (503, calls.REJECT_DECODE_FULL)
    assert third.headers[calls.HEADER_SLOTS] == "2/4"
    for each in long:
        each.cancel()
    await asyncio.gather(*long, return_exceptions=True)
    await until(lambda: is_idle(client, group.decodes[0]), "nothing is held")


async def _running(client: Client, group: Group, count: int) -> bool:
    return await client.metric(group.decodes[0], RUNNING) == count


async def test_what_would_slow_running_answers_too_much_is_refused(
    client: Client, start_group: Any
) -> None:
    """By the profile a token takes 26 ms or more, whatever the machine."""
    paced = ("--paced", "demo-small")
    group: Group = await start_group(paced, ("--slots", "4", *paced))
    alone = await ask(group, body(), **{calls.HEADER_TPOT_MS: "1"})
    assert alone.status == 200, "nothing runs that it could slow down"
    await until(lambda: _running(client, group, 0), "it runs no more")
    running = asyncio.create_task(ask(group, body(max_tokens=400)))
    await until(lambda: _running(client, group, 1), "one runs")
    refused = await ask(group, body(), **{calls.HEADER_TPOT_MS: "20"})
    assert (refused.status, refused.headers[calls.HEADER_REJECT]) == (503, calls.REJECT_TPOT)
    assert refused.body["error"]["code"] == "tpot"
    taken = await ask(group, body(), **{calls.HEADER_TPOT_MS: "60000"})
    unbounded = await ask(group, body())
    assert (taken.status, unbounded.status) == (200, 200)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: is_idle(client, group.decodes[0]), "nothing is held")


@pytest.mark.parametrize("given", ["0", "-5", "x", "1e3", ""])
async def test_a_bad_target_is_refused(start_group: Any, given: str) -> None:
    group: Group = await start_group()
    answer = await ask(group, body(), **{calls.HEADER_TPOT_MS: given})
    assert (answer.status, answer.headers.get(calls.HEADER_REJECT)) == (400, None)
    assert calls.HEADER_TPOT_MS in answer.body["error"]["message"]


async def test_without_the_mark_a_decode_refuses_as_ever(start_group: Any) -> None:
    group: Group = await start_group()
    plain = await group.client.call("POST", group.decodes[0].url + PATH, body())
    assert (plain.status, plain.body["error"]["code"]) == (400, "wrong_role")
    prefill = group.prefills[0].url + PATH
    other = await group.client.call("POST", prefill, body(), headers=LOCAL)
    assert (other.status, other.body["error"]["code"]) == (400, "wrong_role")


def test_a_leg_that_pulls_and_computes_is_refused(model: LoadedModel) -> None:
    limits = openai.RequestLimits("decode", "reference", 2048, 1 << 20)
    raw = orjson.dumps(body() | {PARAM_KV: {"do_remote_prefill": True}})
    with pytest.raises(ApiError, match="computed here or pulled, not both"):
        openai.read("completion", raw, model, limits, local=LocalLeg())


# --- the outlook ----------------------------------------------------------------------------------


@dataclass
class Asked:
    max_tokens: int
    prompt_tokens: int


@dataclass
class Runs:
    """What the outlook looks at of a sequence."""

    request: Asked
    output: list[int]
    first_token_at: float | None
    computed: int
    prefilled: bool = True
    decodes: bool = True


def running(tokens: int, since: float, most: int = 100) -> Sequence:
    return cast(Sequence, Runs(Asked(most, 10), [0] * tokens, since, 10 + tokens))


def prompt(computed: int, total: int) -> Sequence:
    waiting = Runs(Asked(10, total), [], None, computed, prefilled=False, decodes=False)
    return cast(Sequence, waiting)


def estimates() -> Estimates:
    """Times of `demo-small`: 25 ms and 1 ms per answer a step, 0.5 ms a prompt token."""
    return Estimates(Pacer(load_profile("demo-small"), 1.0))


def test_nothing_runs_so_nothing_is_slowed_down() -> None:
    assert slowest_tpot(estimates(), 5.0, (0, 2000), []) == 0.0


@pytest.mark.parametrize("new", [0, 2000])
def test_an_answer_that_has_not_begun_gets_longer_steps(new: int) -> None:
    """Its prompt is still computed, or its KV pulled: two answers a step, whatever comes."""
    soon = slowest_tpot(estimates(), 5.0, (0, new), [prompt(0, 500)])
    assert soon == pytest.approx(0.027 + (new + 500) * 1e-6, rel=0.05)


def test_an_answer_carries_what_it_had_and_what_it_gets() -> None:
    """51 tokens in 2 s, 49 to come at 27 ms and more, and 0.05 s of the new prompt."""
    answer = running(51, 8.0)
    plain = slowest_tpot(estimates(), 10.0, (0, 0), [answer])
    assert plain == pytest.approx((2.0 + 49 * 0.027061) / 99, rel=1e-3)
    assert slowest_tpot(estimates(), 10.0, (0, 100), [answer]) - plain == pytest.approx(
        (100 * 0.0005 + 100**2 * 1e-7 + 49 * 1e-4) / 99, rel=0.02
    )


def test_prompts_that_were_taken_before_count_too() -> None:
    answer = running(51, 8.0)
    alone = slowest_tpot(estimates(), 10.0, (0, 100), [answer])
    assert slowest_tpot(estimates(), 10.0, (0, 100), [answer, prompt(100, 900)]) > alone + 0.003


def test_the_slowest_decides() -> None:
    quick, slow = running(51, 9.0), running(51, 5.0)
    both = slowest_tpot(estimates(), 10.0, (0, 100), [quick, slow])
    assert both > slowest_tpot(estimates(), 10.0, (0, 100), [quick, quick])


def test_without_a_profile_the_outlook_learns() -> None:
    learned = Estimates(None)
    assert slowest_tpot(learned, 10.0, (0, 100), [running(51, 8.0)]) == pytest.approx(2 / 99)
    for tokens in (64, 128) * 5:
        learned.learn_prefill(tokens, 0.03 + tokens * 0.001)
    assert learned.added_by([(0, 100)]) == pytest.approx(0.1, rel=0.01)
    learned.decode_step.add(0.02)
    got = slowest_tpot(learned, 10.0, (0, 100), [running(51, 8.0)])
    assert got == pytest.approx((2 + 0.1 + 49 * 0.02) / 99, rel=0.01)


def test_a_step_of_both_kinds_goes_over_the_weights_once() -> None:
    profile = load_profile("demo-small")

    class Mixed:
        chunks = ((0, 100),)
        decodes = 4
        context = 400

    seconds = estimates().profile_seconds(cast(Batch, Mixed()))
    apart = profile.prefill_seconds([(0, 100)]) + profile.decode_seconds(4, 400)
    assert seconds == pytest.approx(apart - min(profile.a, profile.d))
