"""Token buckets and concurrency of one subject and of several, under a clock of the test."""

from __future__ import annotations

import random
from math import inf

import pytest

from pdserve.forwarding.limit_book import MAX_SUBJECTS, LimitAsk, LimitBook, LimitSubject
from pdserve.forwarding.rate_limits import Limiter, RateBucket
from pdserve.terms.limits import UsageLimits


def test_a_bucket_holds_one_minute_and_fills_evenly() -> None:
    bucket = RateBucket(60, 100.0)
    assert [bucket.wait(60, 100.0), bucket.wait(61, 100.0)] == [0.0, inf]
    bucket.add(-60, 100.0)
    assert bucket.left(100.0) == (60, 0, 60.0)
    assert bucket.wait(1, 100.0) == pytest.approx(1.0)
    assert bucket.wait(1, 101.0) == 0.0
    assert bucket.left(130.0) == (60, 30, pytest.approx(30.0))
    assert bucket.left(1000.0) == (60, 60, 0.0)


def test_a_clock_that_stands_or_goes_back_fills_nothing() -> None:
    bucket = RateBucket(60, 100.0)
    bucket.add(-60, 100.0)
    assert [bucket.level(t) for t in (100.0, 90.0, -inf, 100.0)] == [0.0] * 4
    assert bucket.level(101.0) == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
def test_in_no_window_more_is_admitted_than_the_limit_allows(limit: int) -> None:
    rng, now = random.Random(limit), 0.0
    limiter, admitted = Limiter(UsageLimits(requests=limit), now), list[float]()
    while now < 600.0:
        now += rng.expovariate(limit / 15)  # four times the limit
        if limiter.exceeded(0, now) is None:
            limiter.take(0, now)
            admitted.append(now)
    for first, start in enumerate(admitted):
        for last in range(first, len(admitted), 1 + len(admitted) // 50):
            seconds = admitted[last] - start
            assert last - first + 1 <= limit * (1 + seconds / 60) + 1e-6
    assert len(admitted) >= limit * 8, "and nearly all of the limit is used"


def test_what_was_not_used_comes_back_and_what_was_used_beyond_is_owed() -> None:
    limiter = Limiter(UsageLimits(tokens=600), 0.0)
    limiter.take(600, 0.0)
    refused = limiter.exceeded(100, 0.0)
    assert refused is not None
    assert refused == ("tokens", 600, 600, 100, pytest.approx(10.0))
    limiter.settle(500, 0.0)
    assert limiter.exceeded(500, 0.0) is None
    limiter.settle(-800, 0.0)
    owed = limiter.exceeded(1, 0.0)
    assert owed is not None
    assert owed.wait == pytest.approx(30.1)
    limiter.settle(-(10**18), 0.0)
    worst = limiter.exceeded(600, 0.0)
    assert worst is not None
    assert worst.wait == pytest.approx(120.0), "nonsense of an engine holds up for minutes at most"


def test_more_than_the_limit_is_never_admitted_and_harms_no_other() -> None:
    limiter = Limiter(UsageLimits(requests=5, tokens=100), 0.0)
    refused = limiter.exceeded(101, 0.0)
    assert refused is not None
    assert (refused.kind, refused.wait) == ("tokens", inf)
    assert limiter.exceeded(100, 0.0) is None


def test_concurrency_counts_all_holders_until_they_are_gone() -> None:
    limiter = Limiter(UsageLimits(concurrent=3), 0.0)
    limiter.hold("a", 1)
    limiter.hold("b", 2, until=10.0)
    refused = limiter.exceeded(1, 0.0)
    assert refused is not None
    assert refused == ("concurrent", 3, 3, 1, 0.0)
    assert limiter.exceeded(1, 10.0) is None, "b was not heard of again"
    assert [limiter.held(10.0), limiter.held_by("a"), limiter.held_by("b")] == [1, 1, 0]
    limiter.hold("a", 0)
    assert limiter.idle(10.0)


def test_another_limit_keeps_what_was_used() -> None:
    limiter = Limiter(UsageLimits(requests=60), 0.0)
    limiter.take(0, 0.0)
    limiter.follow(UsageLimits(requests=600, tokens=10), 0.0)
    assert {kind: left.left for kind, left in limiter.left(0.0).items()} == {
        "requests": 599, "tokens": 10
    }  # fmt: skip
    limiter.follow(UsageLimits(), 0.0)
    assert limiter.exceeded(10**9, 0.0) is None
    assert limiter.left(0.0) == {}
    limiter.follow(UsageLimits(requests=600), 0.0)
    assert limiter.left(0.0)["requests"].left == 599


def test_a_debt_that_a_lower_limit_cuts_is_paid_meanwhile() -> None:
    bucket = RateBucket(600, 0.0)
    bucket.add(-600, 0.0)
    bucket.resize(10, 0.0)
    assert bucket.level(0.0) == -10, "two minutes of the new limit are the longest wait"
    bucket.resize(600, 0.0)
    assert bucket.level(0.0) == 0
    bucket.resize(10, 0.0)
    bucket.resize(600, 30.0)
    assert bucket.level(30.0) == pytest.approx(305)
    bucket.resize(10, 30.0)
    bucket.resize(600, 300.0)
    assert bucket.level(300.0) == pytest.approx(600)


@pytest.mark.parametrize(
    "other", [UsageLimits(requests=10), UsageLimits(requests=1), UsageLimits(tokens=5)], ids=str
)
def test_gateways_with_another_limit_each_fill_no_bucket_by_turns(other: UsageLimits) -> None:
    """For a while after a change some gateways name the old limits and some the new ones."""
    now, admitted, limits = 0.0, 0, UsageLimits(requests=1000)
    limiter = Limiter(limits, now)
    for turn in range(240):
        limiter.follow(other if turn % 2 else limits, now)
        while limiter.exceeded(0, now) is None and turn % 2 == 0:
            limiter.take(0, now)
            admitted += 1
        now += 0.5
    assert 1000 <= admitted <= 1000 * (1 + now / 60)


CHAT = LimitSubject("scenario:chat", UsageLimits(requests=10, concurrent=5))
KEY = LimitSubject("key:aa", UsageLimits(tokens=100))


def test_a_request_is_admitted_by_all_subjects_or_counts_in_none() -> None:
    book = LimitBook()
    assert book.admit(LimitAsk((CHAT, KEY), 80), "", 0.0).exceeded is None
    refused = book.admit(LimitAsk((CHAT, KEY), 80), "", 0.0)
    assert refused.exceeded is not None
    assert (refused.subject, refused.exceeded.kind) == (1, "tokens")
    assert refused.left["requests"].left == 9, "the scenario did not pay for the key's refusal"
    assert book.admit(LimitAsk((CHAT,), 80), "", 0.0).exceeded is None, "nor do other keys"
    book.settle((CHAT, KEY), 80, 0.0)
    book.hold(CHAT, "", 0, 0.0)
    assert book.admit(LimitAsk((CHAT, KEY), 100), "", 0.0).exceeded is None


def test_subjects_are_bounded_and_the_used_ones_stay_longest() -> None:
    book = LimitBook()
    assert book.admit(LimitAsk((KEY,), 100), "", 0.0).exceeded is None
    book.hold(KEY, "", 0, 0.0)
    for number in range(MAX_SUBJECTS + 10):
        subject = LimitSubject(f"key:{number}", UsageLimits(concurrent=1))
        book.admit(LimitAsk((subject,), 1), "", 0.0)
        book.hold(subject, "", 0, 0.0)
    assert len(book) <= MAX_SUBJECTS
    assert book.admit(LimitAsk((KEY,), 100), "", 0.0).exceeded is not None
