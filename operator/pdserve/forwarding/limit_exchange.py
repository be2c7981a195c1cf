"""Limits that several gateways share: one decides, the others report and ask.

`answer` is the side of the gateway that decides: it admits in its `LimitBook`, where each other
gateway is a holder. A `LimitOutbox` is the side of the others: it gathers what is to be said until
the answer to the last report is in, so there is one report at a time, and the more is asked the
more asks share one.

Requests in progress are reported as absolute counts. So a report, an answer or a gateway may be
lost, and the counts are right again with the next report, or when the holder was silent for
HOLD_SECONDS. Tokens of a lost report stay taken. Clock as an argument (monotonic seconds of each
gateway's own); no I/O. Neighbours: `wire.limit_exchange` is what is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pdserve.forwarding.limit_book import LimitAsk, LimitBook, LimitSubject, Verdict, least_left
from pdserve.forwarding.rate_limits import MINUTE, SLACK, Exceeded, Left, LimitKind, left_of
from pdserve.terms.limits import UsageLimits
from pdserve.wire.limit_exchange import (
    MAX_ASKS,
    MAX_STATES,
    MAX_TOKENS,
    AskedLimits,
    LimitAnswer,
    LimitReport,
    LimitVerdict,
    SubjectState,
)

HOLD_SECONDS: Final = 5.0
"""A gateway that is silent for so long is taken for gone, with its requests."""
REPEAT_SECONDS: Final = 1.0
"""How often a gateway repeats how many requests it has in progress."""
RATES: Final[tuple[LimitKind, ...]] = ("requests", "tokens")


def share(limits: UsageLimits, gateways: int) -> UsageLimits:
    """What one of so many gateways may admit while it does not reach the one that decides.

    At least 1 of each amount that is limited.
    """
    return UsageLimits(
        -(-limits.requests // gateways),
        -(-limits.tokens // gateways),
        max(1, limits.concurrent // gateways) if limits.concurrent else 0,
    )


def answer(book: LimitBook, report: LimitReport, now: float) -> LimitAnswer:
    """Note what a gateway reports, and decide what it asks."""
    subjects = [LimitSubject(s.id, s.limits) for s in report.states]
    for state, subject in zip(report.states, subjects, strict=True):
        limiter = book.limiter(subject, now)
        for kind, level in zip(RATES, (state.requests, state.tokens), strict=True):
            limiter.lower(kind, level, now)
        limiter.settle(state.settled, now)
        limiter.hold(report.sender, state.held, now + HOLD_SECONDS)
    verdicts = []
    for asked in report.asks:
        ask = LimitAsk(tuple(subjects[s] for s in asked.subjects), asked.tokens)
        found = book.admit(ask, report.sender, now, now + HOLD_SECONDS)
        verdicts.append(_told(found))
    limiters = [book.limiter(subject, now) for subject in subjects]
    left = tuple((one.level("requests", now), one.level("tokens", now)) for one in limiters)
    return LimitAnswer(tuple(verdicts), left)


def _told(verdict: Verdict) -> LimitVerdict:
    if verdict.exceeded is None:
        return LimitVerdict()
    kind, limit, used, asked, wait = verdict.exceeded
    return LimitVerdict(kind, verdict.subject, limit, max(0, used), asked, wait)


@dataclass(slots=True)
class _Known:
    """One subject, as this gateway knows it."""

    limits: UsageLimits
    held: int = 0
    settled: int = 0
    levels: tuple[float | None, float | None] = (None, None)
    """Of requests and tokens, as the one that decides last said them."""
    at: float = 0.0
    introduced: bool = False
    """The one that decides has these levels."""


@dataclass(slots=True, eq=False)
class _Waiting:
    ask: LimitAsk
    resolve: Callable[[Verdict | None], bool]


class LimitOutbox:
    """What one gateway has to say to the one that decides."""

    def __init__(self, sender: str) -> None:
        self._sender = sender
        self._known: dict[str, _Known] = {}
        self._changed: dict[str, None] = {}
        self._asks: deque[_Waiting] = deque()
        self._sent: list[_Waiting] = []

    def ask(self, ask: LimitAsk, resolve: Callable[[Verdict | None], bool]) -> None:
        """Ask with the next report.

        `resolve` is called with the verdict, or None where there will be none; it returns whether
        the request still wants it.
        """
        self._asks.append(_Waiting(ask, resolve))

    def began(self, subjects: Sequence[LimitSubject]) -> None:
        """Count a request as in progress."""
        for subject in subjects:
            self._of(subject).held += 1
            self._changed[subject.id] = None

    def ended(self, subjects: Sequence[LimitSubject], tokens: int) -> None:
        """Count it no longer; `tokens` are given back, negative: it used more than it took."""
        for subject in subjects:
            known = self._of(subject)
            known.held -= 1
            # More is nonsense of an engine, and no report could say it.
            known.settled = max(-MAX_TOKENS, min(MAX_TOKENS, known.settled + tokens))
            self._changed[subject.id] = None

    def held(self, subject: LimitSubject) -> int:
        """Requests that this gateway has in progress."""
        known = self._known.get(subject.id)
        return 0 if known is None else known.held

    def refusal(self, subject: LimitSubject, now: float) -> Verdict | None:
        """Why the one that decides admits no request of a subject now, by what it last said.

        What it said is an upper bound, so it would refuse too. It said nothing of other limits.
        """
        known, limit = self._known.get(subject.id), subject.limits.requests
        if known is None or not limit or known.limits != subject.limits:
            return None
        levels = self._levels(known, now)
        level = levels[0]
        if level is None or level >= 1.0 - SLACK:
            return None
        wait = (1.0 - level) * MINUTE / limit
        exceeded = Exceeded("requests", limit, limit - max(0, int(level)), 1, wait)
        return Verdict(exceeded, 0, _left(subject, levels))

    def quiet(self) -> None:
        """No other gateway decides: there is nothing to say, and nothing to know but counts."""
        self._changed.clear()
        self._known = {name: known for name, known in self._known.items() if known.held > 0}

    def repeat(self, now: float) -> None:
        """Say again what is in progress, every REPEAT_SECONDS; forget what is of no use."""
        for name, known in list(self._known.items()):
            if known.held > 0:
                self._changed[name] = None
            elif name not in self._changed and self._full(known, now):
                del self._known[name]

    def introduce(self) -> None:
        """Another gateway decides from now on: it gets all that is known."""
        for name, known in self._known.items():
            known.introduced, known.settled = False, min(0, known.settled)
            self._changed[name] = None

    def learn(self, book: LimitBook, now: float) -> None:
        """This gateway decides no longer: note what its book knows, to be introduced."""
        for subject, limiter in book.used(now):
            known = self._of(subject)
            known.levels = (limiter.level("requests", now), limiter.level("tokens", now))
            known.at = now

    def hand_over(self, book: LimitBook, holder: str, now: float) -> None:
        """This gateway decides from now on, with a new book: note in it what is known."""
        for name, known in self._known.items():
            limiter = book.limiter(LimitSubject(name, known.limits), now)
            limiter.hold(holder, known.held)
            for kind, level in zip(RATES, self._levels(known, now), strict=True):
                limiter.lower(kind, level, now)
        self._changed.clear()
        while self._asks:
            self._asks.popleft().resolve(None)

    def report(self, now: float) -> LimitReport | None:
        """What to send now; None: nothing. Each is to be `answered` or to be `failed`."""
        if not self._changed and not self._asks:
            return None
        order: dict[str, int] = {}
        asks: list[AskedLimits] = []
        while self._asks and len(asks) < MAX_ASKS and len(order) < MAX_STATES - 4:
            waiting = self._asks.popleft()
            for subject in waiting.ask.subjects:
                self._of(subject)
            places = [order.setdefault(s.id, len(order)) for s in waiting.ask.subjects]
            asks.append(AskedLimits(tuple(places), waiting.ask.tokens))
            self._sent.append(waiting)
        for name in list(self._changed):
            if len(order) < MAX_STATES:
                order.setdefault(name, len(order))
            if name in order:
                del self._changed[name]
        states = tuple(self._state(name, now) for name in order)
        return LimitReport(self._sender, states, tuple(asks))

    def answered(self, report: LimitReport, found: LimitAnswer, now: float) -> None:
        """Take the answer to the last report."""
        for state, levels in zip(report.states, found.left, strict=True):
            known = self._known.get(state.id)
            if known is not None:
                known.levels, known.at, known.introduced = levels, now, True
        sent, self._sent = self._sent, []
        for waiting, told in zip(sent, found.verdicts, strict=True):
            verdict = self._verdict(waiting.ask, told)
            wanted = waiting.resolve(verdict)
            if verdict.exceeded is None:
                self.began(waiting.ask.subjects)
                if not wanted:  # its client left meanwhile
                    self.ended(waiting.ask.subjects, waiting.ask.tokens)

    def failed(self, report: LimitReport) -> None:
        """The last report had no answer: its asks have no verdict, its counts are said again."""
        for state in report.states:
            if (known := self._known.get(state.id)) is not None:
                known.settled = max(-MAX_TOKENS, known.settled + min(0, state.settled))
                self._changed[state.id] = None
        sent, self._sent = self._sent, []
        for waiting in (*sent, *self._asks):
            waiting.resolve(None)
        self._asks.clear()

    def _of(self, subject: LimitSubject) -> _Known:
        known = self._known.setdefault(subject.id, _Known(subject.limits))
        known.limits = subject.limits
        return known

    def _full(self, known: _Known, now: float) -> bool:
        amounts = (known.limits.requests, known.limits.tokens)
        pairs = zip(self._levels(known, now), amounts, strict=True)
        return all(level is None or level >= amount for level, amount in pairs)

    def _state(self, name: str, now: float) -> SubjectState:
        known = self._known[name]
        settled, known.settled = known.settled, 0
        levels = (None, None) if known.introduced else self._levels(known, now)
        return SubjectState(name, known.limits, known.held, settled, *levels)

    def _levels(self, known: _Known, now: float) -> tuple[float | None, float | None]:
        """At most so much is left of the rates: what was, and what came in since."""
        grown = max(0.0, now - known.at) / MINUTE
        (requests, tokens), limits = known.levels, known.limits
        return (
            None if requests is None else min(limits.requests, requests + limits.requests * grown),
            None if tokens is None else min(limits.tokens, tokens + limits.tokens * grown),
        )

    def _verdict(self, ask: LimitAsk, told: LimitVerdict) -> Verdict:
        left = [_left(subject, self._of(subject).levels) for subject in ask.subjects]
        exceeded = None
        if told.kind:
            kind: LimitKind = told.kind  # type: ignore[assignment]  # the reader compared it
            exceeded = Exceeded(kind, told.limit, told.used, told.asked, told.wait)
        subject_at = min(told.subject, len(ask.subjects) - 1)
        return Verdict(exceeded, subject_at, least_left(left))


def _left(
    subject: LimitSubject, levels: tuple[float | None, float | None]
) -> dict[LimitKind, Left]:  # fmt: skip
    amounts = (subject.limits.requests, subject.limits.tokens)
    return {
        kind: left_of(limit, level)
        for kind, limit, level in zip(RATES, amounts, levels, strict=True)
        if limit and level is not None
    }
