"""What one process knows of an instance, event by event, and what it reads of a request."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.forwarding.deadline import PromptSize, TokenEstimate, prompt_size
from pdserve.forwarding.decode import DecodeWalk, GiveUp, Wait
from pdserve.forwarding.dispatch import Dispatcher
from pdserve.forwarding.hints import MAX_FREE_IN
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.forwarding.scenario_view import View
from pdserve.terms import Slo
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteGroup, RouteInstance, RouteScenario

SLO = Slo(1.0, 0.2, 0.05, 0.99)
EVENTS = [
    ("sent", ["sent"], (1, 2)),
    ("sent and taken", ["sent", "accepted"], (1, 2)),
    ("sent, taken and done", ["sent", "accepted", "released"], (0, 3)),
    ("two done", ["sent", "accepted", "sent", "accepted", "released"], (1, 2)),
    ("all taken, one done", ["sent", "accepted"] * 3 + ["released"], (2, 1)),
    ("refused", ["sent", "rejected"], (0, 0)),
    ("cut", ["sent", "abandoned"], (0, 3)),
    ("one of two cut", ["sent", "sent", "abandoned"], (1, 2)),
    ("failed", ["sent", "failed"], (0, 3)),
    ("one of two failed", ["sent", "sent", "failed"], (1, 2)),
    ("it died with one", ["sent", "accepted", "lost"], (0, 2)),
    ("runs before it answers", ["sent", "taken"], (1, 2)),
    ("and was refused after all", ["sent", "taken", "revoked", "rejected"], (0, 0)),
]


@pytest.mark.parametrize(("events", "want"), [e[1:] for e in EVENTS], ids=[e[0] for e in EVENTS])
def test_slots_used_and_free(events: list[str], want: tuple[int, int]) -> None:
    one = _instance("prefill", 3)
    for event in events:
        _happens(one, event, 0.0)
    assert (one.used, one.free) == want


def test_an_acceptance_ends_the_growth_of_pauses() -> None:
    one = _instance("prefill", 1)
    for event in ("sent", "rejected") * 3:
        _happens(one, event, 0.0)
    assert one.next_try(0.0) == pytest.approx(0.020)
    for event in ("sent", "accepted", "released", "sent", "rejected"):
        _happens(one, event, 1.0)
    assert one.next_try(1.0) == pytest.approx(1.005)


def test_pauses_end_their_growth_however_often_it_refuses_or_fails() -> None:
    refusing, gone = _instance("prefill", 1), _instance("prefill", 1)
    for _ in range(3000):
        for event in ("sent", "rejected"):
            _happens(refusing, event, 0.0)
        for event in ("sent", "failed"):
            _happens(gone, event, 0.0)
    assert refusing.next_try(0.0) == pytest.approx(0.080)
    assert gone.next_try(0.0) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("now", "want"),
    [(10.0, 10.5), (10.4, 10.5), (10.6, 11.0), (13.0, 13.5)],
    ids=["at once", "before the first", "after the first", "later"],
)
def test_credit_grows_once_per_pace(now: float, want: float) -> None:
    one = _held_for(2.0)
    assert one.pace == 0.5
    assert one.next_credit(now) == pytest.approx(want)


def test_credit_of_an_instance_that_nothing_is_known_of_grows_by_events_alone() -> None:
    assert _instance("decode", 4).next_credit(5.0) == NEVER
    paused = _held_for(2.0)
    paused.sent(10.0)
    paused.rejected(Hint(0, 9, 3.0, 9), 10.0)
    assert paused.next_credit(10.0) == 10.0 + MAX_FREE_IN, "when it may be asked again"


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({"prompt": "ab\u00e9"}, (4, 0, 0)),
        ({"prompt": [5, 6, 7]}, (0, 3, 0)),
        ({"prompt": ["ab", [1, 2, 3], 7]}, (2, 4, 0)),
        ({"prompt": []}, (0, 0, 0)),
        ({"messages": [{"content": "abc"}, "x", None, {"content": 5}]}, (3, 0, 4)),
        (
            {"messages": [{"content": [{"text": "ab"}, {"text": 1}, "cd", {"image": "x"}]}]},
            (2, 0, 1),
        ),
        ({"messages": "abc"}, (0, 0, 0)),
        ({}, (0, 0, 0)),
    ],
    ids=str,
)
def test_the_size_of_a_prompt(body: dict[str, Any], want: tuple[int, int, int]) -> None:
    size = prompt_size(body)
    assert (size.text, size.tokens, size.messages) == want


@pytest.mark.parametrize(
    ("size", "reported"),
    [(PromptSize(tokens=5), 7), (PromptSize(100, tokens=50), 50), (PromptSize(100, tokens=50), 9)],
    ids=["ids alone", "no token for the text", "fewer than ids"],
)
def test_what_teaches_nothing_changes_no_estimate(size: PromptSize, reported: int) -> None:
    estimate = TokenEstimate()
    before = (estimate.per_byte, estimate.per_message)
    estimate.learn(size, reported)
    assert (estimate.per_byte, estimate.per_message) == before


def test_the_room_has_a_bound() -> None:
    dispatcher = Dispatcher(_view(), lambda: 0.5)
    assert all(dispatcher.offer(1.0) is not None for _ in range(1024))
    assert dispatcher.offer(1.0) is None


@pytest.mark.parametrize(
    ("credit", "reason"), [(1, "deadline"), (0, "no_decode")], ids=["a decode has room", "none has"]
)
def test_a_request_is_late_for_want_of_what_is_short(credit: int, reason: str) -> None:
    view = _view()
    view.groups[0].decodes[0].hinted(Hint(credit, 4, 9.0, 1), 0.0)
    dispatcher = Dispatcher(view, lambda: 0.5)
    dispatcher.offer(1.0)
    (late,) = dispatcher.step(1.0).gave_up
    assert late[1] == reason


@pytest.mark.parametrize(
    ("lost", "want"),
    [("", GiveUp("no_decode")), ("prefill", Wait(0.5)), ("decode", Wait(0.5))],
    ids=["another group lives", "its prefill is ejected", "its decode is ejected"],
)
def test_a_request_leaves_its_group_only_for_one_that_lives(lost: str, want: object) -> None:
    view = _view(2)
    _eject(view.groups[0].decodes[0])
    if lost:
        _eject((view.groups[1].prefills if lost == "prefill" else view.groups[1].decodes)[0])
    walk = DecodeWalk(view, view.groups[0].prefills[0], 9.0, lambda: 0.5)
    assert walk.next(0.0) == want


def _instance(role: Any, slots: int) -> Instance:
    return Instance(RouteInstance("i", role, "http://i", slots), 0)


def _held_for(seconds: float) -> Instance:
    """A decode of 4 slots that held one stream for so long; nothing has changed since 10."""
    one = _instance("decode", 4)
    for _ in range(6):
        one.sent(0.0)
        one.accepted(None, 0.0, 0.0)
    one.released(seconds, 0.0)
    one.hinted(Hint(0, 6, 0.0, 5), 10.0)
    return one


def _happens(one: Instance, event: str, now: float) -> None:
    match event:
        case "sent" | "lost":
            getattr(one, event)(now)
        case "accepted":
            one.accepted(None, now, now)
        case "rejected":
            one.rejected(None, now)
        case "failed":
            one.failed("timeout", now)
        case _:
            getattr(one, event)()


def _eject(one: Instance) -> None:
    one.sent(0.0)
    one.failed("connect", 0.0)


def _view(groups: int = 1) -> View:
    made = tuple(
        RouteGroup(
            g, "r",
            (RouteInstance(f"p{g}", "prefill", f"http://p{g}", 4),
             RouteInstance(f"d{g}", "decode", f"http://d{g}", 4)),
        )
        for g in range(groups)
    )  # fmt: skip
    return View(RouteScenario("s", SLO, made), {})


def test_slots_above_the_limit_stay_empty_whichever_gateway_fills_the_others() -> None:
    one = _instance("decode", 8)
    assert one.credit(0.0) == 10
    one.limit = 6
    assert one.credit(0.0) == 6
    one.free = 3
    assert one.credit(0.0) == 0, "seven of ten places are in use, by others"
    one.free = 5
    assert one.credit(0.0) == 1
    one.limit = 0
    assert one.credit(0.0) == 5
