"""One request step by step: what is asked of whom, and what remains when it has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.request_script import CONTINUING, LOCAL, PULLING, TOGETHER, play

from pdserve.forwarding.deadline import PrefillTimes
from pdserve.forwarding.request.effects import FlowTraits

P, D = "send prefill g0p0", "send decode g0d0"
SERVED = f"{P}, read prefill, drop prefill, {D}, deliver g0d0, drop decode, ended completed"
BEGUN = f"{P}, read prefill, drop prefill, {D}, deliver g0d0"
HELD = f"{P}, read prefill, drop prefill, {D}"

SEQUENTIAL: dict[str, tuple[str, str]] = {
    "served": ("accepted prefilled accepted token delivered", SERVED),
    "the first token ends it": (
        "accepted finished",
        f"{P}, read prefill, drop prefill, release g0p0, ended FirstTokenAnswer",
    ),
    "refused, then served": (
        "full soon accepted prefilled accepted delivered",
        f"{P}, drop prefill, {SERVED}",
    ),
    "no prefill takes it in time": (
        "full unrouted much-later",
        f"{P}, drop prefill, ended Refused",
    ),
    "too late for the only prefill, tried once more without a deadline": (
        "late accepted finished",
        f"{P}, drop prefill, {P}, read prefill, drop prefill, release g0p0, ended FirstTokenAnswer",
    ),
    "too late for the only prefill, and no trial is due": (
        "late late",
        f"{P}, drop prefill, {P}, drop prefill, ended Refused",
    ),
    "a prefill that is not there holds nothing": ("connect gone", f"{P}, ended None"),
    "a prefill is lost, and released by name": (
        "lost accepted prefilled accepted delivered",
        f"{P}, release g0p0, {SERVED}",
    ),
    "two faults are the end": (
        "lost silent",
        f"{P}, release g0p0, {P}, release g0p0, ended Failed",
    ),
    "a 500 is read to its end": (
        "500 read accepted prefilled accepted delivered",
        f"{P}, read prefill, drop prefill, {SERVED}",
    ),
    "an unreadable reply is released": (
        "accepted unreadable gone",
        f"{P}, read prefill, drop prefill, release g0p0, {P}, drop prefill, release g0p0, "
        "ended None",
    ),
    "the client's mistake": ("400 read", f"{P}, read prefill, drop prefill, ended ClientMistake"),
    "the client leaves a prefill": ("gone", f"{P}, drop prefill, release g0p0, ended None"),
    "the client leaves a decode": (
        "accepted prefilled gone",
        f"{HELD}, drop decode, release g0p0, ended None",
    ),
    "the client leaves its stream": (
        "accepted prefilled accepted token gone",
        f"{BEGUN}, drop decode, ended None",
    ),
    "a decode refuses, and is asked again": (
        "accepted prefilled full soon accepted delivered",
        f"{HELD}, drop decode, {D}, deliver g0d0, drop decode, ended completed",
    ),
    "no decode takes it in time": (
        "accepted prefilled full unrouted much-later full",
        f"{HELD}, drop decode, {D}, drop decode, release g0p0, ended Refused",
    ),
    "a decode is lost, the next one gets the KV": (
        "accepted prefilled lost",
        f"{HELD}, release g0p0, {P}",
    ),
    "KV that cannot be pulled: once a new prefill": (
        "accepted prefilled kv-failed much-later",
        f"{HELD}, drop decode, release g0p0, {P}",
    ),
    "a decode's own mistake report": (
        "accepted prefilled 400 read",
        f"{HELD}, read decode, drop decode, release g0p0, ended ClientMistake",
    ),
    "a report that breaks off": (
        "accepted prefilled 400 lost",
        f"{HELD}, read decode, release g0p0, ended Failed",
    ),
    "a stream that breaks off after its first byte": (
        "accepted prefilled accepted token lost",
        f"{BEGUN}, release g0p0, ended Failed",
    ),
    "and before it: a new prefill": (
        "accepted prefilled accepted lost accepted prefilled accepted delivered",
        f"{BEGUN}, release g0p0, {SERVED}",
    ),
    "an error event ends the stream": (
        "accepted prefilled accepted token odd-end",
        f"{BEGUN}, drop decode, ended failed",
    ),
}


@pytest.mark.parametrize(("script", "want"), SEQUENTIAL.values(), ids=SEQUENTIAL.keys())
def test_legs_one_after_the_other(script: str, want: str) -> None:
    client = play(script)
    assert ", ".join(client.log) == want
    rest(client)


CONTINUED: dict[str, tuple[str, str]] = {
    "goes on from another decode": (
        "accepted prefilled accepted token lost accepted prefilled accepted token token token "
        "delivered",
        f"{BEGUN}, release g0p0, complete stream, go on, {SERVED}",
    ),
    "each loss may cost a prefill, two are one fault too many": (
        "accepted prefilled accepted token lost accepted prefilled accepted token lost",
        f"{BEGUN}, release g0p0, complete stream, go on, {BEGUN}, release g0p0, complete stream, "
        "ended Failed",
    ),
    "only the end was missing": (
        "accepted prefilled accepted token token token token lost",
        f"{BEGUN}, release g0p0, complete stream, ended completed",
    ),
    "its prefill finds a mistake: half an answer is a failure": (
        "accepted prefilled accepted token lost 400 read",
        f"{BEGUN}, release g0p0, complete stream, go on, {P}, read prefill, drop prefill, "
        "ended ClientMistake",
    ),
}


@pytest.mark.parametrize(("script", "want"), CONTINUED.values(), ids=CONTINUED.keys())
def test_a_stream_that_can_go_on(script: str, want: str) -> None:
    client = play(script, CONTINUING)
    assert ", ".join(client.log) == want
    request = client.request
    if client.ending != "none" and request.outcome != "completed":
        assert (request.outcome, request.invalid) == ("failed", False)
    rest(client)


L = "send local g0d0"
LOCALLY: dict[str, tuple[str, str]] = {
    "served": ("accepted token delivered", f"{L}, deliver g0d0, drop local, ended completed"),
    "refused: to a prefill": (
        "full accepted prefilled accepted delivered",
        f"{L}, drop local, {SERVED}",
    ),
    "an older version": (
        "400 lacks accepted prefilled accepted delivered",
        f"{L}, read local, drop local, {SERVED}",
    ),
    "a mistake": ("400 read", f"{L}, read local, drop local, ended ClientMistake"),
    "lost": ("lost accepted prefilled accepted delivered", f"{L}, {SERVED}"),
    "two faults": ("500 lost", f"{L}, drop local, {P}, release g0p0, ended Failed"),
    "a lost stream goes on by way of a prefill": (
        "accepted token lost accepted prefilled accepted delivered",
        f"{L}, deliver g0d0, complete stream, go on, {SERVED}",
    ),
    "the client leaves": ("gone", f"{L}, drop local, ended None"),
}


@pytest.mark.parametrize(("script", "want"), LOCALLY.values(), ids=LOCALLY.keys())
def test_a_decode_that_computes_the_prompt(script: str, want: str) -> None:
    client = play(script, LOCAL)
    assert ", ".join(client.log) == want
    rest(client)


PAIR = f"{P}, {D}"
DONE = "drop prefill, deliver g0d0, drop decode, ended completed"
PAIRS: dict[str, tuple[str, str]] = {
    "prefill first": ("prefill decode delivered", f"{PAIR}, read prefill, {DONE}"),
    "decode first": ("decode prefill delivered", f"{PAIR}, read prefill, {DONE}"),
    "the decode refuses": (
        "full soon prefill decode delivered",
        f"{PAIR}, drop decode, drop prefill, release g0p0, {PAIR}, read prefill, {DONE}",
    ),
    "KV that did not come is one fault": (
        "kv-failed soon prefill decode delivered",
        f"{PAIR}, drop decode, drop prefill, release g0p0, {PAIR}, read prefill, {DONE}",
    ),
    "the decode is lost": (
        "lost soon prefill decode delivered",
        f"{PAIR}, drop prefill, release g0p0, {PAIR}, read prefill, {DONE}",
    ),
    "two of them": ("lost lost", f"{PAIR}, drop prefill, release g0p0, {PAIR}, drop prefill, "
                    "release g0p0, ended Failed"),
    "the reply breaks off before its first byte": (
        "prefill decode lost soon prefill decode delivered",
        f"{PAIR}, read prefill, drop prefill, deliver g0d0, release g0p0, {PAIR}, read prefill, "
        f"{DONE}",
    ),
    "the client leaves both": (
        "gone",
        f"{PAIR}, drop prefill, release g0p0, drop decode, ended None",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("script", "want"), PAIRS.values(), ids=PAIRS.keys())
def test_both_legs_at_once(script: str, want: str) -> None:
    client = play(script, TOGETHER)
    assert ", ".join(client.log) == want
    rest(client)


def rest(client: Any) -> None:
    """Where the request has ended, nothing is left of it, and it was counted once."""
    if client.ending == "none":
        client.request.on_client_gone(client.world.now)
    assert client.world.at_rest
    assert client.world.counts.ended == (0 if client.request.invalid else 1)
    before = list(client.log)
    client.request.on_client_gone(client.world.now)
    for leg in client.request.legs:
        client.request.on_lost(leg, "lost", "late news", client.world.now)
        client.request.on_read(leg, client.world.now)
    assert client.log == before, "and it hears of nothing any more"


@pytest.mark.parametrize("traits", [PULLING, CONTINUING, LOCAL, TOGETHER])
@pytest.mark.parametrize("stream", [False, True])
def test_a_leg_asks_for_what_its_reply_needs(traits: FlowTraits, stream: bool) -> None:
    first = play("", traits, stream=stream).request.legs[0]
    later = play("accepted prefilled", PULLING, stream=stream).request.legs[-1]
    assert first.deadline_ms is not None
    assert first.token_ids is (stream and traits is LOCAL)
    assert (first.early_head, later.early_head) == ((not stream) and traits is LOCAL, not stream)
    assert later.source is not None
    assert later.name == later.source.name, "the KV is pulled by the prefill's name"


@pytest.mark.parametrize("step", ["overdue", "interim"])
def test_kv_that_is_taken_to_be_pulled_frees_the_prefill(step: str) -> None:
    client = play(f"accepted prefilled {step}", stream=False)
    prefill = client.world.instance("g0p0")
    assert prefill.used == 0
    client.lose()
    assert client.log[-2:] == ["release g0p0", P], "it may not have been: once a new prefill"
    rest(client)


def test_an_early_head_is_only_for_replies_that_come_whole() -> None:
    client = play("accepted prefilled interim")
    assert client.world.instance("g0p0").used == 1
    rest(client)


def test_a_stream_has_its_grace_whatever_it_had_before() -> None:
    """A fault before its first token must not shorten what it gets for losing its decode."""
    client = play("lost accepted prefilled accepted token", CONTINUING)
    request = client.request
    request.faults, request.grace_until = 0, client.world.now + 0.001
    client.lose()
    assert request.grace_until >= client.world.now + 5.0
    rest(client)


def test_a_long_answer_has_the_time_that_its_prefill_takes() -> None:
    client = play("accepted prefilled accepted token token token", CONTINUING)
    world = client.world
    slow = replace(world.scheduler.scenario, prefill_seconds=(0.0, 10.0))
    world.scheduler.prefill_times = PrefillTimes()
    world.scheduler.update(slow, {}, world.now)
    client.lose()
    assert client.request.predicted == pytest.approx(130.0), "10 of the prompt, 3 of the answer"
    rest(client)
