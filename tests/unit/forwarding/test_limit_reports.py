"""What a gateway says about limits that decided itself before."""

from __future__ import annotations

import pytest

from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject
from pdserve.forwarding.limit_exchange import LimitOutbox, answer
from pdserve.terms.limits import UsageLimits

CHAT = LimitSubject("scenario:chat", UsageLimits(requests=60, tokens=6000, concurrent=8))


def test_a_gateway_that_decides_no_longer_says_what_it_had_admitted() -> None:
    old, new, outbox = LimitBook(), LimitBook(), LimitOutbox("one")
    for _ in range(5):
        assert old.admit(LimitAsk((CHAT,), 1000), "one", 0.0).exceeded is None
    outbox.learn(old, 0.0)
    outbox.introduce()
    report = outbox.report(3.0)
    assert report is not None
    outbox.answered(report, answer(new, report, 3.0), 3.0)
    assert new.limiter(CHAT, 3.0).level("requests", 3.0) == pytest.approx(60 - 5 + 3)
    assert new.limiter(CHAT, 3.0).level("tokens", 3.0) == pytest.approx(6000 - 5000 + 300)
    outbox.learn(LimitBook(), 3.0)
    assert outbox.report(3.0) is None
