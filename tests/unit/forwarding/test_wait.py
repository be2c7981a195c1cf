"""How long a client should wait, and the choices of the waiting room."""

from __future__ import annotations

from itertools import cycle

import pytest
from tests.support.dispatch_world import SLO, scenario

from pdserve.forwarding.dispatch import Dispatcher, Ticket
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.scenario_view import View
from pdserve.wire.hints import Hint

NOW = 100.0


def dispatcher_of(*groups: tuple[list[int], list[int]]) -> tuple[Dispatcher, View]:
    view = View(scenario(*groups), {})
    return Dispatcher(view, cycle((0.3, 0.6, 0.1, 0.9)).__next__), view


def takes(one: Instance, seconds: float) -> None:
    """It has just held one request for so long."""
    one.sent(NOW - seconds)
    one.accepted(None, NOW if one.route.role == "prefill" else NOW - seconds, NOW - seconds)
    one.released(NOW, NOW - seconds)


def busy(one: Instance, seconds: float) -> None:
    """None of its slots is free for so long."""
    one.hinted(Hint(0, one.total, seconds, 7), NOW)


def offered(dispatcher: Dispatcher, count: int, suspect: bool = False) -> list[Ticket]:
    found = []
    for _ in range(count):
        ticket = dispatcher.offer(NOW + 60)
        assert ticket is not None
        ticket.suspect = ticket.suspect or suspect
        found.append(ticket)
    return found


PACES = [
    ("one free", [1.0], [0.0], 0, 0.0),
    ("the first that is free", [1.0, 1.0], [0.5, 0.2], 0, 0.2),
    ("those that came before, at the pace of all", [1.0, 0.5], [0.5, 0.2], 3, 0.2 + 3 / 3),
    ("two slots are twice as fast", [1.0, 1.0], [0.0, 0.0], 4, 2.0),
    ("never above a minute", [9.0], [1.5], 50, 60.0),
    ("one of unknown pace: a target's time", [1.0, 0.0], [0.0, 0.0], 3, SLO.ttft),
]


@pytest.mark.parametrize(
    ("seconds", "until", "room", "want"), [p[1:] for p in PACES], ids=[p[0] for p in PACES]
)
def test_how_long_a_request_that_comes_now_waits_for_a_prefill(
    seconds: list[float], until: list[float], room: int, want: float
) -> None:
    dispatcher, view = dispatcher_of(([1] * len(seconds), [64]))
    for one, held, later in zip(view.groups[0].prefills, seconds, until, strict=True):
        if held:
            takes(one, held)
        if later:
            busy(one, later)
    offered(dispatcher, room)
    assert dispatcher.wait(NOW) == pytest.approx(want)


def test_an_ejected_prefill_serves_no_room() -> None:
    dispatcher, view = dispatcher_of(([1, 1], [64]))
    dead, alive = view.groups[0].prefills
    takes(dead, 1.0)
    takes(alive, 1.0)
    dead.sent(NOW)
    dead.failed("connect", NOW)
    offered(dispatcher, 3)
    assert dispatcher.wait(NOW) == pytest.approx(3.0)
    alive.sent(NOW)
    alive.failed("connect", NOW)
    assert dispatcher.wait(NOW) == SLO.ttft, "nothing serves it: a target's time"


@pytest.mark.parametrize(
    ("decodes", "prefill", "want"),
    [
        ([1.5, 0.7], 0.0, 0.7),
        ([1.5, 0.0], 0.0, 0.0),
        ([1.5, 0.7], 0.25, 0.25),
    ],
    ids=["the first that is free", "one has room", "the prefill is what is short"],
)
def test_decodes_count_where_they_are_what_is_short(
    decodes: list[float], prefill: float, want: float
) -> None:
    dispatcher, view = dispatcher_of(([1], [1, 1]))
    takes(view.groups[0].prefills[0], 1.0)
    for one, later in zip(view.groups[0].decodes, decodes, strict=True):
        if later:
            busy(one, later)
    if prefill:
        busy(view.groups[0].prefills[0], prefill)
    assert dispatcher.wait(NOW) == pytest.approx(want)


def test_without_a_prefill_or_a_decode_the_wait_is_still_a_number() -> None:
    dispatcher, _ = dispatcher_of(([], [1]))
    assert dispatcher.wait(NOW) == 60.0
    dispatcher, view = dispatcher_of(([1], []))
    takes(view.groups[0].prefills[0], 1.0)
    assert dispatcher.wait(NOW) == 0.0


def test_requests_that_a_prefill_broke_under_never_meet_at_one_prefill() -> None:
    dispatcher, _ = dispatcher_of(([4, 4], [64]))
    suspects = offered(dispatcher, 3, suspect=True)
    sends = dispatcher.step(NOW).sends
    assert {s.prefill.id for s in sends} == {"g0p0", "g0p1"}
    assert [s.ticket for s in sends] == suspects[:2]
    assert dispatcher.step(NOW).sends == []
    assert dispatcher.settled(suspects[0]), "another may have its turn"
    (third,) = dispatcher.step(NOW).sends
    assert (third.ticket, third.prefill) == (suspects[2], sends[0].prefill)
    assert not dispatcher.settled(suspects[0]), "once"


def test_requests_without_suspicion_share_prefills_and_pass_suspects() -> None:
    dispatcher, _ = dispatcher_of(([4], [64]))
    suspects = offered(dispatcher, 2, suspect=True)
    others = offered(dispatcher, 3)
    sent = [s.ticket for s in dispatcher.step(NOW).sends]
    assert sent == [suspects[0], *others]


def test_a_request_that_waits_for_its_next_attempt_holds_up_none_behind_it() -> None:
    dispatcher, view = dispatcher_of(([4], [64]))
    first, second, third = offered(dispatcher, 3)
    dispatcher.step(NOW)
    for _ in range(3):
        view.groups[0].prefills[0].abandoned()
    first.attempts = 2
    for ticket in (first, second, third):
        dispatcher.back(ticket, NOW + 8.0)
    step = dispatcher.step(NOW + 8.0)
    assert [s.ticket for s in step.sends] == [second, third]
    assert step.wake_at == first.not_before == NOW + 10.0


def test_a_suspect_whose_prefills_are_all_on_trial_waits_for_an_event() -> None:
    """Also at the very time at which a prefill that failed it may be asked again."""
    dispatcher, view = dispatcher_of(([4], [64]))
    first, second = offered(dispatcher, 2, suspect=True)
    (send,) = dispatcher.step(NOW).sends
    assert send.ticket is first
    dispatcher.failed(second, view.groups[0].prefills[0], NOW)
    for now in (NOW, second.excluded_until, second.excluded_until + 1.0):
        step = dispatcher.step(now)
        assert step.sends == []
        assert step.wake_at > now


ORDER = [
    ("known free before merely due", "due 0", "free 2", "g0p1"),
    ("fewest of our own open legs", "free 1", "free 0", "g0p1"),
    ("as many: random", "free 1", "free 1", "g0p0"),
    ("due alone", "due 0", "later 0", "g0p0"),
    ("free alone", "later 0", "free 3", "g0p1"),
]


@pytest.mark.parametrize(
    ("first", "second", "want"), [o[1:] for o in ORDER], ids=[o[0] for o in ORDER]
)
def test_which_prefill_is_asked(first: str, second: str, want: str) -> None:
    dispatcher, view = dispatcher_of(([4, 4], [64]))
    for one, state in zip(view.groups[0].prefills, (first, second), strict=True):
        kind, legs = state.split()
        for _ in range(int(legs)):
            one.sent(NOW - 1.0)
        free, later = {"free": (1, 0.0), "due": (0, 0.5), "later": (0, 1.5)}[kind]
        one.hinted(Hint(free, 4, later, 1), NOW - 1.0)
    dispatcher.offer(NOW + 60)
    (send,) = dispatcher.step(NOW).sends
    assert send.prefill.id == want


def test_the_room_is_looked_at_again_when_the_first_thing_may_have_changed() -> None:
    dispatcher, view = dispatcher_of(([1], [1]))
    (prefill,), (decode,) = view.groups[0].prefills, view.groups[0].decodes
    assert dispatcher.step(NOW).wake_at == float("inf"), "nothing waits"
    dispatcher.offer(NOW + 1.2)
    busy(prefill, 0.8)
    assert dispatcher.step(NOW).wake_at == NOW + 0.8
    busy(prefill, 1.5)
    assert dispatcher.step(NOW).wake_at == NOW + 1.2, "its deadline"
    busy(decode, 0.3)
    assert dispatcher.step(NOW).wake_at == NOW + 0.3, "a decode"


def test_a_refused_request_keeps_its_turn_and_its_pace() -> None:
    dispatcher, view = dispatcher_of(([1], [64]))
    (prefill,) = view.groups[0].prefills
    ticket, other = offered(dispatcher, 2)
    for asking, want in ((0.0, 0.0), (0.0, 0.010), (8.0, 2.0)):
        now = NOW + asking
        dispatcher.withdraw(other)
        prefill.hinted(Hint(1, 1, 0.0, 1), now)
        (send,) = dispatcher.step(max(now, ticket.not_before)).sends
        assert send.ticket is ticket
        prefill.abandoned()
        dispatcher.back(ticket, now)
        assert ticket.not_before - now == pytest.approx(want)
    assert (ticket.attempts, ticket.first_sent) == (3, NOW)
