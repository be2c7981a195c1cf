"""Hints, health, budget, match and deadlines: the small parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.forwarding.budget import RetryBudget
from pdserve.forwarding.ejection import MAX_SECONDS, Health
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.match import describe_known, known_models, match_scenario
from pdserve.forwarding.ranking import NEVER
from pdserve.terms import Slo
from pdserve.wire.hints import Hint, parse_hint
from pdserve.wire.routes import RouteInstance, RouteScenario, RouteTable

SLO = Slo(1.0, 0.2, 0.05, 0.99)


def prefill(slots: int = 2) -> Instance:
    return Instance(RouteInstance("p", "prefill", "http://p", slots), 0)


# --- hints ---


def test_hint_from_values() -> None:
    assert parse_hint(b"1/4", b"250", b"17") == Hint(1, 4, 0.25, 17)
    assert parse_hint(b"0/1") == Hint(0, 1, 0.0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        (b"x/4",), (b"1",), (b"5/4",), (b"-1/4",), (b"1/4", b"soon"), (b"1/4", b"nan"),
        (b"1/4", b"-3"), (b"1/4", b"inf"), (b"1/4", b"0", b"e"), (b"\xff/4",),
        (b"1/1048577",), (b"1/" + b"9" * 400,),
    ],
)  # fmt: skip
def test_a_malformed_hint_is_ignored(bad: tuple[bytes, ...]) -> None:
    assert parse_hint(*bad) is None


def test_stale_hints_lose_and_a_restarted_process_wins_later() -> None:
    p = prefill()
    assert p.hinted(Hint(0, 2, 1.0, 50), now=0.0)
    assert not p.hinted(Hint(2, 2, 0.0, 49), now=0.1)
    assert p.free == 0
    assert p.hinted(Hint(2, 2, 0.0, 1), now=1.5)
    assert p.free == 2


def test_a_prefill_full_of_our_own_legs_needs_an_event_not_a_hint() -> None:
    p = prefill(slots=1)
    p.sent(0.0)
    p.hinted(Hint(1, 1, 0.0, 9), 0.0)
    assert p.next_try(0.0) == NEVER
    p.accepted(None, 0.1, 0.0)
    assert p.next_try(0.1) == NEVER
    p.released()
    assert p.next_try(0.1) == 0.1


def test_repeated_refusals_without_hints_back_off() -> None:
    p, pauses, now = prefill(), [], 0.0
    for _ in range(7):
        p.sent(now)
        p.rejected(None, now)
        pauses.append(p.next_try(now) - now)
        now = p.next_try(now)
    assert pauses == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, 0.08, 0.08])


def test_a_draining_instance_is_left_alone_for_longer() -> None:
    p = prefill()
    p.sent(0.0)
    p.rejected(Hint(2, 2, 0.0, 1), 0.0, serving=False)
    assert p.next_try(0.0) == 1.0


@given(
    st.lists(st.sampled_from(["send", "accept", "refuse", "fail", "close", "hint"]), max_size=60)
)
def test_own_counts_never_go_wrong(events: list[str]) -> None:
    p, now, epoch = prefill(slots=3), 0.0, 0
    sent = held = 0
    for event in events:
        now += 0.1
        if event == "send" and p.next_try(now) <= now:
            p.sent(now)
            sent += 1
        elif event == "accept" and sent:
            p.accepted(None, now, now - 0.1)
            sent, held = sent - 1, held + 1
        elif event == "refuse" and sent:
            p.rejected(None, now)
            sent -= 1
        elif event == "fail" and sent:
            p.failed("connect", now)
            sent -= 1
        elif event == "close" and held:
            p.released()
            held -= 1
        elif event == "hint":
            epoch += 1
            p.hinted(Hint(epoch % 4, 3, 0.5, epoch), now)
        assert (p.legs, p.held) == (sent, held)
        assert p.used <= p.total
        assert 0 <= p.free <= p.total
        assert p.next_try(now) >= now


# --- decode credit ---


def decode(slots: int, stream_seconds: float) -> Instance:
    """A decode that is known to hold a stream for so long."""
    d = Instance(RouteInstance("d", "decode", "http://d", slots), 0)
    d.sent(0.0)
    d.accepted(None, 0.0, 0.0)
    d.released(stream_seconds, 0.0)
    return d


@pytest.mark.parametrize(
    ("stream_seconds", "want"),
    [(0.38, 10), (0.7, 9), (1.6, 8), (8.0, 8)],
    ids=["0.05 s per slot: both places", "0.09 s: one", "0.2 s: none, one in five waits longer",
         "1 s: none"],
)  # fmt: skip
def test_prefetch_places_count_only_if_a_slot_surely_frees_within_the_handoff_target(
    stream_seconds: float, want: int
) -> None:
    d = decode(slots=8, stream_seconds=stream_seconds)
    assert d.credit(stream_seconds, handoff=0.3) == want
    assert d.credit(stream_seconds) == 10, "without a target every place counts"


def test_slots_full_of_our_own_streams_leave_no_credit_however_long_it_takes() -> None:
    d = decode(slots=8, stream_seconds=8.0)
    for _ in range(8):
        d.sent(10.0)
        d.accepted(None, 10.0, 10.0)
    assert d.credit(10.0, handoff=0.3) == d.credit(1000.0, handoff=0.3) == 0
    d.released()
    assert d.credit(1000.0, handoff=0.3) == 1


def test_streams_of_other_gateways_end_unseen_and_credit_returns_with_time() -> None:
    d = decode(slots=8, stream_seconds=8.0)
    d.hinted(Hint(1, 10, 0.0, 1), now=20.0)
    assert d.credit(20.0, handoff=0.3) == 0
    times = [20.0]
    while d.credit(times[-1], handoff=0.3) == 0:
        times.append(d.next_credit(times[-1]))
    assert times == pytest.approx([20.0, 21.0, 22.0])


def test_when_a_full_instance_is_likely_to_have_a_slot_again() -> None:
    d = Instance(RouteInstance("d", "decode", "http://d", 1), 0)
    for _ in range(d.total):
        d.sent(10.0)
        d.accepted(None, 10.0, 10.0)
    assert d.expected_free(10.0) == 11.0, "nothing is known: a second"
    assert d.expected_free(16.0) == 22.0, "as long again as it has lasted"
    d.released(18.0, 10.0)
    assert d.expected_free(18.0) == 18.0
    d.sent(18.0)
    d.accepted(None, 18.0, 18.0)
    assert d.expected_free(19.0) == 26.0, "streams take 8 s here"


# --- health ---


def test_lost_connection_ejects_at_once_and_longer_each_time() -> None:
    health, now, waits = Health(), 0.0, []
    for _ in range(7):
        health.attempt()
        health.failure("connect", now)
        waits.append(health.next_try(now) - now)
        now = health.next_try(now)
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 10, 10])
    assert max(waits) == MAX_SECONDS


def test_half_open_lets_exactly_one_request_try() -> None:
    health = Health()
    health.failure("connect", 0.0)
    assert health.next_try(0.4) == 0.5
    health.attempt()
    assert health.next_try(0.6) == NEVER
    health.success()
    assert not health.ejected
    assert health.next_try(0.6) == 0.6


def test_a_probe_that_told_nothing_lets_another_try() -> None:
    health = Health()
    health.failure("lost", 0.0)
    health.attempt()
    health.abandon()
    assert health.next_try(1.0) == 1.0


def test_5xx_eject_only_when_three_follow_each_other() -> None:
    health = Health()
    for kind in ("status", "timeout"):
        health.failure(kind, 0.0)
    health.success()
    for _ in range(2):
        health.failure("status", 0.0)
    assert not health.ejected
    health.failure("status", 0.0)
    assert health.ejected


def test_many_legs_lost_together_count_as_one_ejection() -> None:
    health = Health()
    for _ in range(8):
        health.failure("lost", 0.0)
    assert health.next_try(0.0) == 0.0
    health.attempt()
    assert health.next_try(0.0) == NEVER
    health.failure("connect", 0.0)
    assert health.next_try(0.0) == 0.5


def test_one_request_that_breaks_its_connection_takes_the_instance_from_no_other() -> None:
    health = Health()
    health.failure("lost", 0.0)
    health.attempt()
    health.success()
    assert not health.ejected


# --- budget ---


def test_retry_budget_is_a_share_of_requests_with_a_reserve() -> None:
    budget = RetryBudget(fraction=0.05, reserve=2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(19):
        budget.earn()
    assert not budget.take()
    budget.earn()
    assert budget.take()


# --- match ---


def table(*scenarios: RouteScenario) -> RouteTable:
    return RouteTable("shop", 1, "tiny", "Reference", scenarios)


def test_first_matching_scenario_wins() -> None:
    t = table(
        RouteScenario("gold", SLO, (), headers={"x-tier": "gold"}),
        RouteScenario("code", SLO, (), models=("shop-code", "shop-sql")),
        RouteScenario("rest", SLO, ()),
    )
    cases = [
        ("tiny", {"x-tier": "gold"}, "gold"),
        ("tiny", {"x-tier": "Gold"}, "rest"),
        ("tiny", {}, "rest"),
        ("shop-sql", {"x-tier": "gold"}, "code"),
        ("shop-sqlx", {}, None),
    ]
    for model, given_headers, want in cases:
        found = match_scenario(t, model, given_headers)
        assert (found and found.name) == want, (model, given_headers)
    assert known_models(t) == ("tiny", "shop-code", "shop-sql")
    assert describe_known(t) == (
        "gold (model 'tiny' with header x-tier: gold); "
        "code (model 'shop-code' or 'shop-sql'); rest (model 'tiny')"
    )
    assert describe_known(table()) == "none yet"
