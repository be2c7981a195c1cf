"""Limits of several subjects, decided together: a request is admitted by all of them or by none.

A subject is a scenario or an API key. Limiters are made when first asked for and forgotten when
a new one would be the same. Clock as an argument (monotonic seconds); no I/O. Neighbours:
`rate_limits` is one subject, the gateway's `limits` has the book of a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from pdserve.forwarding.rate_limits import Exceeded, Left, Limiter, LimitKind
from pdserve.terms.limits import UsageLimits

MAX_SUBJECTS: Final = 65_536
"""Beyond that the one that was made first is forgotten."""


class LimitSubject(NamedTuple):
    """Whose limits a request counts in."""

    id: str
    """`scenario:` or `key:` and what tells it from others; the same in all gateways."""
    limits: UsageLimits


class LimitAsk(NamedTuple):
    """A request that asks to be admitted."""

    subjects: tuple[LimitSubject, ...]
    tokens: int
    """Of its prompt and the most that it may generate."""


class Verdict(NamedTuple):
    """What became of an `LimitAsk`."""

    exceeded: Exceeded | None
    """None: it is admitted, and counts in all of its subjects."""
    subject: int
    """Which of its subjects does not admit it."""
    left: dict[LimitKind, Left]
    """What is left of each rate: of the subject that has least."""


class LimitBook:
    """Limiters by subject."""

    def __init__(self) -> None:
        self._limiters: dict[str, Limiter] = {}

    def __len__(self) -> int:
        """Subjects that are remembered."""
        return len(self._limiters)

    def admit(self, ask: LimitAsk, holder: str, now: float, until: float = inf) -> Verdict:
        """Admit a request in all of its subjects, or in none.

        Args:
            ask: the request.
            holder: the gateway that has it.
            now: monotonic seconds.
            until: when the holder is forgotten, if it says nothing more.
        """
        limiters = self._all(ask.subjects, now)
        worst: Exceeded | None = None
        subject = 0
        for number, limiter in enumerate(limiters):
            found = limiter.exceeded(ask.tokens, now)
            if found is not None and (worst is None or found.wait > worst.wait):
                worst, subject = found, number
        if worst is None:
            for limiter in limiters:
                limiter.take(ask.tokens, now)
                limiter.hold(holder, limiter.held_by(holder) + 1, until)
        return Verdict(worst, subject, least_left([one.left(now) for one in limiters]))

    def refusal(self, subject: LimitSubject, now: float) -> Verdict | None:
        """Why no request of a subject is admitted now, however few tokens it asks for."""
        limiter = self._limiters.get(subject.id)
        if limiter is None:
            return None
        limiter.follow(subject.limits, now)
        exceeded = limiter.exceeded(0, now)
        if exceeded is None:
            return None
        return Verdict(exceeded, 0, limiter.left(now))

    def settle(self, subjects: Sequence[LimitSubject], tokens: int, now: float) -> None:
        """Give tokens back; negative: more was used than taken."""
        for subject in subjects:
            if (limiter := self._limiters.get(subject.id)) is not None:
                limiter.settle(tokens, now)

    def hold(self, subject: LimitSubject, holder: str, count: int, now: float) -> None:
        """Note how many requests a holder has in progress."""
        if count or subject.id in self._limiters:
            self.limiter(subject, now).hold(holder, count)

    def limiter(self, subject: LimitSubject, now: float) -> Limiter:
        """The one of a subject, made where there is none."""
        return self._all((subject,), now)[0]

    def used(self, now: float) -> list[tuple[LimitSubject, Limiter]]:
        """Subjects of which something was used, and what of it."""
        found = [(name, one) for name, one in self._limiters.items() if not one.idle(now)]
        return [(LimitSubject(name, one.limits), one) for name, one in found]

    def _all(self, subjects: Sequence[LimitSubject], now: float) -> list[Limiter]:
        if len(self._limiters) > MAX_SUBJECTS - len(subjects):
            self._forget(now)
        return [self._one(subject, now) for subject in subjects]

    def _one(self, subject: LimitSubject, now: float) -> Limiter:
        found = self._limiters.get(subject.id)
        if found is None:
            found = self._limiters[subject.id] = Limiter(subject.limits, now)
        else:
            found.follow(subject.limits, now)
        return found

    def _forget(self, now: float) -> None:
        idle = [name for name, limiter in self._limiters.items() if limiter.idle(now)]
        few = list(self._limiters)[: MAX_SUBJECTS // 16]
        for name in idle or few:
            del self._limiters[name]


def least_left(every: Iterable[Mapping[LimitKind, Left]]) -> dict[LimitKind, Left]:
    """Of several subjects, for each rate what the one has left that has least."""
    least: dict[LimitKind, Left] = {}
    for one in every:
        for kind, left in one.items():
            if kind not in least or left.left < least[kind].left:
                least[kind] = left
    return least
