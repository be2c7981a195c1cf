"""What one answer teaches of an instance: when to ask again, how long a slot is held."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.forwarding.attempt_pacing import next_attempt
from pdserve.forwarding.hints import supersedes
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.wire.hints import Hint
from pdserve.wire.routes import RouteInstance

NOW = 100.0


def instance(role: Any = "prefill", slots: int = 4) -> Instance:
    return Instance(RouteInstance("i", role, "http://i", slots), 0)


REFUSALS: list[tuple[str, list[Hint | None], float]] = [
    ("no hint", [None], 0.005),
    ("no hint, again", [None, None], 0.010),
    ("a slot is free in a while", [Hint(0, 4, 0.5, 5)], 0.5),
    ("told again", [Hint(0, 4, 0.5, 5), Hint(0, 4, 0.5, 6)], 0.5),
    ("in no time", [Hint(0, 4, 0.0, 5)], 0.005),
    ("sooner than the pause", [Hint(0, 4, 0.005, 5), Hint(0, 4, 0.005, 6)], 0.010),
    ("later than the first pause", [Hint(0, 4, 0.006, 5), Hint(0, 4, 0.006, 6)], 0.006),
    ("it says free and refuses", [Hint(1, 4, 0.0, 5)], 0.005),
    ("it says free, and when, and refuses", [Hint(1, 4, 0.5, 5), Hint(1, 4, 0.5, 6)], 0.010),
    ("a late reply of the past", [Hint(0, 4, 0.5, 5), Hint(0, 4, 0.7, 4)], 0.5),
    ("a late reply of the past alone pauses", [Hint(0, 4, 0.001, 5), Hint(0, 4, 9.0, 4)], 0.010),
    ("beyond the limit of hints", [Hint(0, 4, 60.0, 5)], 2.0),
]


@pytest.mark.parametrize(("hints", "want"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_when_to_ask_again_after_refusals(hints: list[Hint | None], want: float) -> None:
    one = instance()
    for hint in hints:
        one.sent(NOW)
        one.rejected(hint, NOW)
    assert one.next_try(NOW) - NOW == pytest.approx(want)


@pytest.mark.parametrize("hint", [None, Hint(0, 4, 0.5, 5), Hint(3, 4, 0.0, 5)])
def test_an_instance_that_does_not_serve_is_left_alone_for_a_second(hint: Hint | None) -> None:
    one = instance()
    one.sent(NOW)
    one.rejected(hint, NOW, serving=False)
    assert one.next_try(NOW) == NOW + 1.0
    assert one.next_try(NOW + 5.0) == NOW + 5.0


@pytest.mark.parametrize("answer", ["rejected", "accepted"])
def test_an_answer_is_a_sign_of_life(answer: str) -> None:
    one = instance()
    for event in ("failed", "failed", answer, "failed", "failed"):
        one.sent(NOW)
        if event == "failed":
            one.failed("status", NOW)
        elif event == "rejected":
            one.rejected(None, NOW)
        else:
            one.accepted(None, NOW, NOW)
    assert not one.health.ejected


@pytest.mark.parametrize("serving", [True, False])
def test_an_acceptance_ends_the_pause(serving: bool) -> None:
    one = instance()
    one.sent(NOW)
    one.sent(NOW)
    one.rejected(None, NOW, serving=serving)
    assert one.next_try(NOW) > NOW
    one.accepted(Hint(3, 4, 0.0, 1), NOW, NOW)
    assert one.next_try(NOW) == NOW


def test_an_instance_that_died_under_a_request_is_tried_by_one() -> None:
    one = instance()
    one.sent(NOW)
    one.accepted(None, NOW, NOW)
    one.lost(NOW)
    assert one.health.ejected
    assert (one.used, one.next_try(NOW)) == (0, NOW)
    one.sent(NOW)
    assert one.next_try(NOW) == NEVER


EPOCHS = [
    ("newer", 6, 0.0, True),
    ("the same state said again", 5, 0.0, True),
    ("a late reply of the past", 4, 0.0, False),
    ("as late as a reply may be", 4, 1.0, False),
    ("a process that started again", 4, 1.01, True),
    ("from its beginning", 0, 60.0, True),
]


@pytest.mark.parametrize(
    ("epoch", "age", "taken"), [e[1:] for e in EPOCHS], ids=[e[0] for e in EPOCHS]
)
def test_which_hints_are_taken(epoch: int, age: float, taken: bool) -> None:
    assert supersedes(epoch, 5, age) is taken
    one = instance()
    one.hinted(Hint(0, 4, 0.5, 5), NOW)
    assert one.hinted(Hint(2, 3, 0.0, epoch), NOW + age) is taken
    assert (one.free, one.total) == ((2, 3) if taken else (0, 4))


def test_a_hint_of_no_slots_leaves_an_instance_of_one() -> None:
    one = instance()
    one.hinted(Hint(0, 0, 0.0, 5), NOW)
    assert one.total == 1


@pytest.mark.parametrize(
    ("role", "seconds", "want"),
    [
        ("prefill", [2.0], 2.0),
        ("prefill", [2.0, 4.0], 2.4),
        ("prefill", [2.0, 1.0, 1.0], 1.64),
        ("decode", [2.0], 2.0),
        ("decode", [2.0, 4.0], 2.4),
    ],
    ids=str,
)
def test_a_slot_is_held_as_long_as_the_last_ones_were(
    role: str, seconds: list[float], want: float
) -> None:
    """Newer ones weigh a fifth."""
    one = instance(role)
    assert one.pace == 0.0, "not known"
    for long in seconds:
        one.sent(NOW)
        if role == "prefill":
            one.accepted(None, NOW + long, NOW)
            one.released()
        else:
            one.accepted(None, NOW, NOW)
            one.released(NOW + long, NOW)
    assert one.pace * 4 == pytest.approx(want)


def test_a_prefill_teaches_nothing_by_how_long_its_kv_waits() -> None:
    one = instance("prefill")
    one.sent(NOW)
    one.accepted(None, NOW + 2.0, NOW)
    one.released(NOW + 60.0, NOW)
    assert one.pace * 4 == pytest.approx(2.0)


FREE = [
    ("a slot is free", [], 0.0),
    ("refused without a time", ["refused"], 0.005),
    ("told when", ["told"], 0.7),
    ("a pause", ["draining"], 1.0),
    ("ejected", ["ejected"], 0.5),
    ("a probe is out: as long as a slot takes to free", ["ejected", "probe"], 0.5),
]


@pytest.mark.parametrize(("events", "want"), [f[1:] for f in FREE], ids=[f[0] for f in FREE])
def test_when_a_slot_is_likely_to_be_free(events: list[str], want: float) -> None:
    one = instance("prefill")
    one.sent(NOW - 2.0)
    one.accepted(None, NOW, NOW - 2.0)
    one.released()
    for event in events:
        one.sent(NOW)
        match event:
            case "refused":
                one.rejected(None, NOW)
            case "told":
                one.rejected(Hint(0, 4, 0.7, 1), NOW)
            case "draining":
                one.rejected(None, NOW, serving=False)
            case "ejected":
                one.failed("connect", NOW)
    assert one.expected_free(NOW) - NOW == pytest.approx(want)


def test_the_last_free_slot_that_is_taken_is_back_after_its_share_of_the_time() -> None:
    one = instance("prefill", slots=2)
    one.sent(NOW - 3.0)
    one.accepted(None, NOW, NOW - 3.0)
    one.released()
    one.hinted(Hint(1, 2, 0.0, 1), NOW)
    assert one.next_try(NOW) == NOW
    one.sent(NOW)
    assert one.next_try(NOW) == pytest.approx(NOW + 1.5)
    one.legs -= 1
    assert one.expected_free(NOW) == pytest.approx(NOW + 1.5)


@pytest.mark.parametrize(
    ("attempts", "asking", "want"),
    [
        (1, 8.0, 0.0),
        (5, 8.0, 0.0),
        (6, 8.0, 2.0),
        (7, 8.0, 2.0),
        (60, 8.0, 2.0),
        (6, 0.0, 0.010),
        (6, 0.04, 0.010),
        (6, 0.08, 0.020),
    ],
)
def test_two_attempts_at_each_candidate_are_free_and_later_ones_paced(
    attempts: int, asking: float, want: float
) -> None:
    """A later one waits a quarter of the time that its request has been asking for."""
    assert next_attempt(NOW, attempts, 3, NOW + asking) == pytest.approx(NOW + asking + want)


CREDIT = [
    ("free, and nothing known", 0.0, 6, 9.0, 6),
    ("the unseen ends of streams", 2.0, 1, 1.0, 3),
    ("of half a pace nothing", 2.0, 1, 0.4, 1),
    ("never more than there are places", 2.0, 1, 60.0, 6),
    ("none free, none ended", 2.0, 0, 0.0, 0),
]


@pytest.mark.parametrize(
    ("held", "free", "later", "want"), [c[1:] for c in CREDIT], ids=[c[0] for c in CREDIT]
)
def test_what_a_decode_would_take(held: float, free: int, later: float, want: int) -> None:
    one = instance("decode")
    if held:
        one.sent(NOW)
        one.accepted(None, NOW, NOW)
        one.released(NOW + held, NOW)
    one.hinted(Hint(free, 6, 0.0, 1), NOW)
    assert one.credit(NOW + later) == want


def test_a_decode_that_may_be_asked_takes_one_though_its_time_is_not_known() -> None:
    one = instance("decode")
    one.sent(NOW)
    one.rejected(Hint(0, 6, 0.5, 1), NOW)
    assert one.credit(NOW + 0.4) == 0
    assert one.credit(NOW + 0.5) == 1
    assert one.next_credit(NOW) == NOW + 0.5
    assert one.next_credit(NOW + 0.5) == NEVER
