"""Several gateways share limits: one decides, messages get lost, gateways come and go."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject, Verdict
from pdserve.forwarding.limit_exchange import (
    HOLD_SECONDS,
    REPEAT_SECONDS,
    LimitOutbox,
    answer,
    share,
)
from pdserve.terms.limits import MAX_LIMIT, UsageLimits
from pdserve.wire.bounds import WireError
from pdserve.wire.limit_exchange import LimitAnswer, LimitReport

CHAT = LimitSubject("scenario:chat", UsageLimits(requests=60, tokens=6000, concurrent=8))
KEY = LimitSubject("key:aa", UsageLimits(concurrent=3))


@dataclass
class Gateway:
    """One that does not decide: asks, and notes the verdicts."""

    name: str
    outbox: LimitOutbox = field(init=False)
    verdicts: list[Verdict | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outbox = LimitOutbox(self.name)

    def ask(self, tokens: int = 10, *subjects: LimitSubject, wanted: bool = True) -> None:
        def resolve(verdict: Verdict | None) -> bool:
            self.verdicts.append(verdict)
            return wanted

        self.outbox.ask(LimitAsk(subjects or (CHAT,), tokens), resolve)

    def exchange(self, book: LimitBook, now: float, lost: str = "") -> bool:
        """One report; `lost`: it, or its answer. False: there was none to send."""
        report = self.outbox.report(now)
        if report is None:
            return False
        found = None
        if lost != "report":
            heard = LimitReport.from_json(json.loads(json.dumps(report.to_json())))
            assert heard == report
            said = json.loads(json.dumps(answer(book, heard, now).to_json()))
            found = LimitAnswer.from_json(said, report)
        if found is None or lost:
            self.outbox.failed(report)
        else:
            self.outbox.answered(report, found, now)
        return True

    @property
    def admitted(self) -> int:
        return sum(v is not None and v.exceeded is None for v in self.verdicts)


def test_asks_of_one_moment_share_a_report_and_have_one_limit() -> None:
    book, one, two = LimitBook(), Gateway("one"), Gateway("two")
    for gateway in (one, two):
        for _ in range(6):
            gateway.ask()
        assert gateway.exchange(book, 0.0)
    assert (one.admitted, two.admitted) == (6, 2)
    refused = two.verdicts[-1]
    assert refused is not None
    assert refused.exceeded == ("concurrent", 8, 8, 1, 0.0)
    assert refused.left["requests"].left == 52
    assert refused.left["requests"].full_in == pytest.approx(8.0)


def test_what_ends_anywhere_makes_room_everywhere() -> None:
    book, one, two = LimitBook(), Gateway("one"), Gateway("two")
    for _ in range(8):
        one.ask(100)
    one.exchange(book, 0.0)
    for _ in range(3):
        one.outbox.ended((CHAT,), 40)
    assert one.exchange(book, 0.0)
    for _ in range(4):
        two.ask(10)
    two.exchange(book, 0.0)
    assert two.admitted == 3
    left = two.verdicts[-1]
    assert left is not None
    assert left.left["tokens"].left == 6000 - 8 * 100 + 3 * 40 - 3 * 10


def test_a_client_that_left_while_it_asked_holds_nothing() -> None:
    book, one = LimitBook(), Gateway("one")
    one.ask(500, KEY, CHAT, wanted=False)
    one.exchange(book, 0.0)
    one.exchange(book, 0.0)
    assert book.limiter(KEY, 0.0).held(0.0) == 0
    assert book.limiter(CHAT, 0.0).level("tokens", 0.0) == 6000
    assert not one.exchange(book, 0.0), "and nothing more is to be said"


@pytest.mark.parametrize("lost", ["report", "answer"])
def test_a_lost_message_is_made_good_by_the_next(lost: str) -> None:
    book, one = LimitBook(), Gateway("one")
    for _ in range(2):
        one.ask(100, KEY)
    one.exchange(book, 0.0)
    one.outbox.ended((KEY,), 0)
    one.ask(100, KEY)
    one.exchange(book, 0.0, lost=lost)
    assert one.verdicts[-1] is None, "it is decided otherwise"
    one.exchange(book, 0.0)
    assert book.limiter(KEY, 0.0).held(0.0) == 1


def test_a_gateway_that_fell_silent_holds_nothing_and_one_that_repeats_does() -> None:
    book, gone, here = LimitBook(), Gateway("gone"), Gateway("here")
    for gateway in (gone, here):
        gateway.ask(1, CHAT)
        gateway.exchange(book, 0.0)
    now = 0.0
    while now < 3 * HOLD_SECONDS:
        now += REPEAT_SECONDS
        here.outbox.repeat(now)
        assert here.exchange(book, now)
    assert book.limiter(CHAT, now).held(now) == 1


def test_a_new_decider_begins_with_what_is_known() -> None:
    old, new = LimitBook(), LimitBook()
    one, two = Gateway("one"), Gateway("two")
    for gateway, count in ((one, 3), (two, 4)):
        for _ in range(count):
            gateway.ask(800)
        gateway.exchange(old, 0.0)
    one.outbox.hand_over(new, "one", 6.0)
    two.outbox.introduce()
    assert two.exchange(new, 6.0)
    limiter = new.limiter(CHAT, 6.0)
    assert limiter.held(6.0) == 7
    assert limiter.level("requests", 6.0) == pytest.approx(60 - 7 + 6)
    assert limiter.level("tokens", 6.0) == pytest.approx(6000 - 7 * 800 + 600)
    assert one.outbox.report(6.0) is None


def test_what_the_decider_said_last_refuses_until_time_has_passed() -> None:
    book, one = LimitBook(), Gateway("one")
    three = LimitSubject("key:bb", UsageLimits(requests=3, tokens=900))
    assert one.outbox.refusal(three, 0.0) is None, "nothing is known"
    for _ in range(3):
        one.ask(100, three, KEY)
    one.exchange(book, 0.0)
    found = one.outbox.refusal(three, 5.0)
    assert found is not None
    assert found.exceeded == ("requests", 3, 3, 1, pytest.approx(15.0))
    assert {kind: left.left for kind, left in found.left.items()} == {"requests": 0, "tokens": 675}
    assert one.outbox.refusal(three, 20.0) is None
    assert one.outbox.refusal(KEY, 5.0) is None, "its rates are not limited"
    own = book.refusal(three, 5.0)
    assert own is not None
    assert own.exceeded == found.exceeded
    assert book.refusal(three, 20.0) is None
    assert book.refusal(LimitSubject("key:cc", three.limits), 5.0) is None


def test_what_was_said_of_another_limit_refuses_nothing() -> None:
    book, gateway = LimitBook(), Gateway("one")
    one = LimitSubject("key:bb", UsageLimits(requests=1))
    gateway.ask(0, one)
    assert gateway.exchange(book, 0.0)
    assert gateway.outbox.refusal(one, 1.0) is not None
    more = LimitSubject("key:bb", UsageLimits(requests=100))
    assert gateway.outbox.refusal(more, 1.0) is None, "the one that decides is asked"


def test_only_what_is_in_progress_is_repeated() -> None:
    book, one = LimitBook(), Gateway("one")
    for subject in (CHAT, KEY):
        one.ask(1, subject)
    one.exchange(book, 0.0)
    one.outbox.ended((KEY,), 0)
    one.exchange(book, 0.0)
    one.outbox.repeat(1.0)
    report = one.outbox.report(1.0)
    assert report is not None
    assert [(s.id, s.held) for s in report.states] == [(CHAT.id, 1)]
    assert one.outbox.held(KEY) == 0


def test_an_answer_that_names_another_subject_is_of_the_last() -> None:
    one = Gateway("one")
    one.ask(1, CHAT, KEY)
    report = one.outbox.report(0.0)
    assert report is not None
    told = {"kind": "tokens", "subject": 3, "limit": 1, "used": 1, "asked": 1, "wait": 1.0}
    said = LimitAnswer.from_json({"verdicts": [told], "left": [{}, {}]}, report)
    one.outbox.answered(report, said, 0.0)
    assert [v.subject for v in one.verdicts if v is not None] == [1]


@pytest.mark.parametrize("limits", [UsageLimits(MAX_LIMIT, MAX_LIMIT, 1), UsageLimits(1, 1, 1)])
def test_whatever_was_used_and_however_long_ago_it_can_be_reported(limits: UsageLimits) -> None:
    """A report that is refused would have the gateway hold shares for ever."""
    subject, one = LimitSubject("key:aa", limits), Gateway("one")
    one.ask(1, subject)
    one.exchange(LimitBook(), 0.0)
    for nonsense in (10**30, -(10**30)):
        one.outbox.ended((subject,), nonsense)
        assert one.exchange(LimitBook(), 1.0, lost="answer")
        one.outbox.began((subject,))
        one.outbox.introduce()
        assert one.exchange(LimitBook(), 1e6)


def test_shares_add_up_to_no_more_than_one_each_above_the_limit() -> None:
    for limits in (UsageLimits(1, 1, 1), UsageLimits(10, 7, 5), UsageLimits(1000, 0, 64)):
        for count in (1, 2, 3, 16, 64):
            one = share(limits, count)
            assert 0 <= count * one.requests - limits.requests < count
            assert 0 <= count * one.tokens - limits.tokens < count
            assert count * one.concurrent <= max(limits.concurrent, count)
            assert bool(one.concurrent) == bool(limits.concurrent)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_lost_no_more_is_admitted_than_the_limit(seed: int) -> None:
    """The bound of the docstrings: requests in any window, and requests in progress at any time.

    A lost answer may admit at the decider what the gateway never begins: fewer, never more.
    """
    rng, book, now = random.Random(seed), LimitBook(), 0.0
    gateways = [Gateway(f"g{n}") for n in range(4)]
    running: list[tuple[float, Gateway]] = []
    begun: list[float] = []
    told: dict[str, int] = {g.name: 0 for g in gateways}

    def step(gateway: Gateway) -> None:
        if rng.random() < 0.7:
            gateway.ask(rng.randrange(1, 200))
        gateway.exchange(book, now, rng.choice(["", "", "", "", "report", "answer"]))
        while gateway.admitted > told[gateway.name]:
            told[gateway.name] += 1
            begun.append(now)
            running.append((now + rng.expovariate(0.5), gateway))

    while now < 300.0:
        now += rng.expovariate(20.0)
        for entry in [r for r in running if r[0] <= now]:
            running.remove(entry)
            entry[1].outbox.ended((CHAT,), rng.randrange(-50, 150))
        gateway = rng.choice(gateways)
        step(gateway)
        if rng.random() < 0.2:
            for other in gateways:
                other.outbox.repeat(now)
        assert len(running) <= 8
    for first, start in enumerate(begun):
        for last in range(first, len(begun), 7):
            assert last - first + 1 <= 60 * (1 + (begun[last] - start) / 60) + 1e-6
    assert len(begun) > 100


BAD_REPORTS: list[tuple[str, Callable[[dict[str, object]], object]]] = [
    ("no object", lambda r: []),
    ("no sender", lambda r: {**r, "from": None}),
    ("a long sender", lambda r: {**r, "from": "x" * 129}),
    ("states of another type", lambda r: {**r, "states": {"id": "x"}}),
    ("too many states", lambda r: {**r, "states": [{}] * 5000}),
    ("a subject without limits", lambda r: {**r, "states": [{"id": "x"}]}),
    ("a limit below 0", lambda r: {**r, "states": [state(limits={"tokensPerMinute": -1})]}),
    ("a limit as a string", lambda r: {**r, "states": [state(limits={"tokensPerMinute": "9"})]}),
    ("held below 0", lambda r: {**r, "states": [state(held=-1)]}),
    ("held as a truth value", lambda r: {**r, "states": [state(held=True)]}),
    ("settled beyond all", lambda r: {**r, "states": [state(settled=2**60)]}),
    ("a level that is none", lambda r: {**r, "states": [state(tokens="NaN")]}),
    ("an ask of no such subject", lambda r: {**r, "asks": [{"subjects": [1], "tokens": 1}]}),
    ("an ask of a subject before the first",
     lambda r: {**r, "asks": [{"subjects": [-1], "tokens": 1}]}),
    ("an ask of many subjects", lambda r: {**r, "asks": [{"subjects": [0] * 9, "tokens": 1}]}),
    ("an ask below 0", lambda r: {**r, "asks": [{"subjects": [0], "tokens": -1}]}),
    ("too many asks", lambda r: {**r, "asks": [{"subjects": [0], "tokens": 1}] * 1025}),
]  # fmt: skip


def state(**fields: object) -> dict[str, object]:
    return {"id": "scenario:chat", "limits": {"requestsPerMinute": 5}, **fields}


@pytest.mark.parametrize(("what", "change"), BAD_REPORTS, ids=[what for what, _ in BAD_REPORTS])
def test_a_malformed_report_is_refused(
    what: str, change: Callable[[dict[str, object]], object]
) -> None:
    good: dict[str, object] = {"from": "g", "states": [state()], "asks": []}
    assert LimitReport.from_json(good).states[0].limits == UsageLimits(requests=5)
    with pytest.raises(WireError):
        LimitReport.from_json(change(good))


@pytest.mark.parametrize(
    "said",
    [None, {}, {"verdicts": [], "left": [{}]}, {"verdicts": [{}], "left": []},
     {"verdicts": [{"kind": "other", "wait": 1}], "left": [{}]},
     {"verdicts": [{"kind": "tokens"}], "left": [{}]},
     {"verdicts": [{}], "left": [{"tokens": "x"}]}, {"verdicts": [{}] * 2, "left": [{}]}],
)  # fmt: skip
def test_a_malformed_answer_is_none(said: object) -> None:
    one = Gateway("one")
    one.ask()
    report = one.outbox.report(0.0)
    assert report is not None
    with pytest.raises(WireError):
        LimitAnswer.from_json(said, report)
    one.outbox.failed(report)
    assert one.verdicts == [None]
